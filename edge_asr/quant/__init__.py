"""Post-training quantization: the stages, the walker that applies them, the uniform grid."""
