"""What scores a response: reward model, gold scorer, bag of words, lexicon."""
