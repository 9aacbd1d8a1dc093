"""What a person sees while a run goes on: stage, step, rate, time left."""

import shutil
import sys
import time


def clock(seconds):
    """3:07, or 1:02:45 from an hour on."""
    seconds = int(seconds)
    hours, minutes, seconds = seconds // 3600, seconds // 60 % 60, seconds % 60
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Progress:
    """One line that is rewritten on a terminal, and a line now and then where there is none."""

    def __init__(self, every=20.0, stream=None):
        self.stream, self.every = stream or sys.stderr, every
        self.live = self.stream.isatty()
        self.last = self.started = time.monotonic()
        self.width = 0

    def say(self, text):
        """A line that stays."""
        if self.live:
            self.stream.write("\r" + " " * self.width + "\r")
            self.width = 0
        self.stream.write(f"[{clock(time.monotonic() - self.started)}] {text}\n")
        self.stream.flush()
        self.last = time.monotonic()

    def show(self, text):
        """A line that the next one replaces; without a terminal, one line in ``every`` seconds."""
        if self.live:
            # a line that wraps cannot be written over
            text = text[: shutil.get_terminal_size().columns - 1]
            self.stream.write("\r" + text.ljust(self.width))
            self.stream.flush()
            self.width = len(text)
        elif time.monotonic() - self.last >= self.every:
            self.say(text)


class Rate:
    """Steps done of a number of steps: the rate, and the time left at that rate."""

    def __init__(self, total, done=0):
        self.total, self.first, self.start = total, done, time.monotonic()

    def text(self, done):
        spent = time.monotonic() - self.start
        each = spent / max(1, done - self.first)
        rate = f"{each:.1f} s/step" if each >= 1 else f"{1 / each:.1f} steps/s"
        return f"step {done}/{self.total}, {rate}, {clock(each * (self.total - done))} left"
