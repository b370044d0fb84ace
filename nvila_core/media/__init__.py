"""Images and videos as users give them, and the pixel tensors that the vision tower takes."""
