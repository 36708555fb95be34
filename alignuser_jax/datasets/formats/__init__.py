"""One reader per format of human logs: the `read` of each module returns a `Dataset`.

`datasets.importing.FORMATS` lists them for `alignuser import-logs`. A new format is a module
here and a line there.
"""
