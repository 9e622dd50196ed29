"""The exercises of each lesson: cases, the right answer, and the mistakes that people make."""
