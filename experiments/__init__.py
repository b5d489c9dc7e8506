"""What people run: train, evaluate, video, preview, doctor. Each module's ``main`` reads as a sentence."""
