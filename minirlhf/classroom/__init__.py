"""For the class room: checkers, claims, running the notebooks."""
