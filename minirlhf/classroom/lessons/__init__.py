"""The exercises of each lesson, and the concept test.

An exercise has random cases, a reference solution and common mistakes with their messages.
"""
