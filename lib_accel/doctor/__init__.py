"""`python -m lib_accel doctor`: what of this machine we can use, and what to do about the rest.

Facts are gathered (`live`), judged by pure functions (`judge_*`), and shown without private words (`report`).
"""
