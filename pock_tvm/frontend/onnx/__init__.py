"""The front end for ONNX, a subject a file: inputs, parameters, evaluation, converters, translation.

:func:`pock_tvm.frontend.onnx_file.import_onnx` puts them together. A converter is an ordinary function whose signature
is the operator's: what it does not name is refused (``registry``).
"""
