"""Model files, read and written so that nothing is ever lost.

An existing output needs ``force``; the input is never written onto, whatever the options say.
"""

from bnpass.files.groups import FileGroup, replacing, together, writing
from bnpass.files.leftovers import new_data_name
from bnpass.files.outputs import atomic_write, check_output, make_folder
from bnpass.files.reading import (
    check_input,
    data_files,
    load_model,
    names_data,
    open_model,
    parse_model,
)
from bnpass.files.saving import save_model

__all__ = [
    "FileGroup",
    "atomic_write",
    "check_input",
    "check_output",
    "data_files",
    "load_model",
    "make_folder",
    "names_data",
    "new_data_name",
    "open_model",
    "parse_model",
    "replacing",
    "save_model",
    "together",
    "writing",
]
