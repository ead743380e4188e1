"""ONNX models: their weights, read out of the graph, become a checkpoint that every engine runs."""
