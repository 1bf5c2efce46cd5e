"""Early-exit decoding: sessions, steps, batches, verification and sampling."""
