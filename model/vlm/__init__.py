"""What a VLM says of an image: questions, answers and their terms."""
