"""Online knowledge distillation of image classifiers, from a recipe to a checked ONNX file."""

__version__ = "0.1.0.dev0"
