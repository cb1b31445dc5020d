"""The embedded corpus: multi-voice synthetic speech with exact phone times, generated deterministically.

It stands in for data where none may be downloaded and serves mechanisms, not claims: a model trained on it says
nothing about its error on real speech.
"""
