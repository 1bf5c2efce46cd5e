"""Scripts that make the pocket model: questions, speech, units, training, heads, card."""
