"""How the embedded model was trained and is judged: drawn pictures, their captions, the stages, the score."""
