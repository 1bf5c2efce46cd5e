"""How the pocket model is made: questions, speech, units, training, heads, figures."""
