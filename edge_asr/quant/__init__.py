"""Post-training quantization: stages, the sequential pass that applies them, the uniform grid."""
