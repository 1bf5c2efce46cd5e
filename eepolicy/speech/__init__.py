"""Speech: audio files, units, vocoders, audio encoders, recognition and ratings."""
