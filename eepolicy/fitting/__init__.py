"""FitConfig exit heads on the model's own replies."""
