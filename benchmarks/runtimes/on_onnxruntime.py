"""Plain onnxruntime in an environment without bnpass: ``python on_onnxruntime.py JOBS.json``."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

jobs = json.loads(Path(sys.argv[1]).read_text())
print(onnxruntime.__version__)
for job in jobs:
    try:
        session = onnxruntime.InferenceSession(job["model"], providers=["CPUExecutionProvider"])
        x = np.fromfile(job["input"], np.float32).reshape(job["shape"])
        outputs = session.run(None, {session.get_inputs()[0].name: x})
        np.concatenate([o.astype(np.float32).ravel() for o in outputs]).tofile(job["output"])
    except Exception as error:  # noqa: BLE001  # the table says it
        print(job["name"], str(error).strip().splitlines()[0], file=sys.stderr)
