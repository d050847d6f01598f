"""Plain OpenVINO on the CPU: ``python on_openvino.py JOBS.json``."""

import json
import sys
from pathlib import Path

import numpy as np
import openvino

jobs = json.loads(Path(sys.argv[1]).read_text())
core = openvino.Core()
# Its default on some processors is bfloat16 arithmetic, whatever the model's type.
core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
print(openvino.__version__.split("-")[0])
for job in jobs:
    try:
        compiled = core.compile_model(job["model"], "CPU")
        x = np.fromfile(job["input"], np.float32).reshape(job["shape"])
        found = compiled([x])
        outputs = [np.asarray(found[port], np.float32).ravel() for port in compiled.outputs]
        np.concatenate(outputs).tofile(job["output"])
    except Exception as error:  # noqa: BLE001  # the table says it
        print(job["name"], str(error).strip().splitlines()[-1], file=sys.stderr)
