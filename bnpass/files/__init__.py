"""Model files, read and written so that nothing is ever lost.

An existing output needs ``force``; the input is never written onto, whatever the options say.
"""

from bnpass.files.reading import check_input, data_files, load_model, open_model, parse_model
from bnpass.files.replacing import atomic_write, check_output, make_folder, replacing, writing
from bnpass.files.saving import save_model

__all__ = [
    "atomic_write",
    "check_input",
    "check_output",
    "data_files",
    "load_model",
    "make_folder",
    "open_model",
    "parse_model",
    "replacing",
    "save_model",
    "writing",
]
