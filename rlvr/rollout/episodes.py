"""Episodes of several turns: the policy writes, an environment answers, the policy goes on.

An episode is one list of ids that only grows. What the policy sampled is never encoded again; what
the environment says is encoded once, by the environment, and stands between the turns. So the ids
that are trained are those that were sampled, behind exactly the context they were sampled in.

Turns are generated in waves: all episodes that wait for the policy are one call of the engine.
Environments answer in threads meanwhile. Where a sample's bits depend on what else is in the
engine's batch, a wave waits for all answers, so that a run repeats bit for bit; else the next one
begins with the episodes that are ready, and a slow environment holds up its own episode alone.
"""

import hashlib
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from rlvr.rollout.engine import Engine, Finished, Progress, Request, Sample
from rlvr.rollout.sampling import Sampling
from rlvr.threads import Threads
from rlvr.types import Answer, FinishReason, Limits, Turn

_TICK_S = 0.2


class Episode(Protocol):
    """One episode of an environment, in token ids."""

    def step(self, token_ids: tuple[int, ...]) -> Answer:
        """What follows what the policy wrote; called in a thread, one call after another."""
        ...

    def close(self) -> None:
        """The episode is over, however it ended; called once, where time ran out also while
        :meth:`step` is still at work."""
        ...


@dataclass(eq=False, slots=True)
class _Playing:
    """An episode under way."""

    request: int
    sample: int
    prompt_ids: tuple[int, ...]
    seed: int
    episode: Episode
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    output: Sample | None = None

    def wrote(self, sample: Sample, reward: float | None) -> None:
        """Append a turn."""
        start = len(self.ids)
        self.ids += sample.token_ids
        self.logprobs += sample.logprobs
        self.turns.append(Turn(start, len(self.ids), sample.finish_reason, reward))

    def observed(self, ids: Sequence[int]) -> None:
        """Append what the environment said."""
        self.ids += ids
        self.logprobs += [0.0] * len(ids)

    def end(self, reason: FinishReason) -> None:
        """Settle what the engine would have returned for a single turn."""
        reward = sum((turn.reward for turn in self.turns if turn.reward is not None), 0.0)
        ids, logprobs = tuple(self.ids), tuple(self.logprobs)
        self.output = Sample(ids, logprobs, reason, turns=tuple(self.turns), reward=reward)

    def next_request(self) -> Request:
        """The coming turn."""
        return Request((*self.prompt_ids, *self.ids), (turn_seed(self.seed, len(self.turns)),))


def turn_seed(seed: int, turn: int) -> int:
    """The seed of an episode's turn, from 0; the first is the completion's own."""
    if turn == 0:
        return seed
    text = f"{seed}\x1fturn {turn}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def play(
    engine: Engine,
    requests: Sequence[Request],
    episodes: Callable[[int, int], Episode],
    sampling: Sampling,
    limits: Limits,
    progress: Progress | None = None,
    finished: Finished | None = None,
    *,
    threads: int = 32,
) -> None:
    """Play one episode for each seed of each request, as ``Engine.generate`` completes them.

    Args:
        engine: Generates the turns, each of at most ``sampling.max_tokens``.
        requests: Prompts, with a seed for each episode.
        episodes: Begins the episode of (request, sample).
        sampling: How tokens are drawn.
        limits: What ends an episode that does not end by itself.
        progress: Called with (episodes that are over, all) while there are others; what it raises
            ends all.
        finished: Called with a request's index and its samples when its last episode is over.
        threads: How many environments answer at a time.
    """
    pool = Threads(threads, "environment")
    try:
        _Play(engine, requests, episodes, sampling, limits, progress, finished, pool).run()
    finally:
        pool.close()


class _Play:
    def __init__(
        self,
        engine: Engine,
        requests: Sequence[Request],
        episodes: Callable[[int, int], Episode],
        sampling: Sampling,
        limits: Limits,
        progress: Progress | None,
        finished: Finished | None,
        pool: Threads,
    ) -> None:
        self.engine, self.sampling, self.limits, self.pool = engine, sampling, limits, pool
        self.progress, self.finished = progress, finished
        self.requests = list(requests)
        self.of_request = [
            [
                _Playing(r, s, request.prompt_ids, seed, episodes(r, s))
                for s, seed in enumerate(request.seeds)
            ]
            for r, request in enumerate(requests)
        ]
        self.total = sum(map(len, self.of_request))
        self.over = 0
        self.answers: queue.SimpleQueue[tuple[_Playing, Sample, Answer | BaseException]]
        self.answers = queue.SimpleQueue()
        self.asked: dict[_Playing, Sample] = {}
        self.began = time.monotonic()

    def run(self) -> None:
        ready = everything = [playing for own in self.of_request for playing in own]
        first = True
        try:
            while ready:
                self._wave(ready, first)
                first, ready = False, self._answered()
            assert self.over == self.total, "an episode was lost"
        finally:
            for playing in everything:
                if playing.output is None:
                    playing.episode.close()

    def _wave(self, ready: list[_Playing], first: bool) -> None:
        """One turn of each; environments are asked as turns arrive."""
        requests = self.requests if first else [playing.next_request() for playing in ready]

        def arrived(index: int, samples: list[Sample]) -> None:
            turned = self.of_request[index] if first else [ready[index]]
            for playing, sample in zip(turned, samples, strict=True):
                self.asked[playing] = sample
                self.pool.submit(partial(self._ask, playing, sample))

        self.engine.generate(requests, self.sampling, lambda *_: self._tick(), arrived)

    def _ask(self, playing: _Playing, sample: Sample, _: None) -> None:
        """In a thread: have the environment answer, unless the turn was cut."""
        answer: Answer | BaseException = Answer(ended=sample.finish_reason)
        if sample.finish_reason == "stop":
            try:
                answer = playing.episode.step(sample.token_ids)
            except BaseException as error:  # the thread's boundary: raised in the caller's
                answer = error
        self.answers.put((playing, sample, answer))

    def _answered(self) -> list[_Playing]:
        """The episodes that wait for the policy, in order; waits for them."""
        ready: list[_Playing] = []
        while self.asked and not (ready and self.engine.interleaves):
            self._tick()
            try:
                self._take(*self.answers.get(timeout=_TICK_S), ready)
            except queue.Empty:
                self._give_up_waiting()
            while not self.answers.empty():
                self._take(*self.answers.get(), ready)
        return sorted(ready, key=lambda playing: (playing.request, playing.sample))

    def _take(
        self,
        playing: _Playing,
        sample: Sample,
        answer: Answer | BaseException,
        ready: list[_Playing],
    ) -> None:
        if self.asked.pop(playing, None) is None:
            return  # given up meanwhile
        if isinstance(answer, BaseException):
            raise answer
        playing.wrote(sample, answer.reward)
        ended = answer.ended or self._at_a_limit(playing, answer.observed)
        if ended is None:
            playing.observed(answer.observed)
            ready.append(playing)
        else:
            self._end(playing, ended)

    def _at_a_limit(self, playing: _Playing, observed: Sequence[int]) -> FinishReason | None:
        if self._too_late:
            return "seconds"
        if len(playing.turns) >= self.limits.turns:
            return "turns"
        room = self.limits.tokens - len(playing.ids) - len(observed)
        return "tokens" if room < self.sampling.max_tokens else None

    @property
    def _too_late(self) -> bool:
        seconds = self.limits.seconds
        return seconds is not None and time.monotonic() - self.began > seconds

    def _give_up_waiting(self) -> None:
        """End the episodes whose environments have not answered in time."""
        if not self._too_late:
            return
        for playing, sample in list(self.asked.items()):
            del self.asked[playing]
            playing.wrote(sample, None)
            self._end(playing, "seconds")

    def _end(self, playing: _Playing, reason: FinishReason) -> None:
        playing.end(reason)
        playing.episode.close()
        self.over += 1
        self._tick()
        outputs = [own.output for own in self.of_request[playing.request]]
        there = [output for output in outputs if output is not None]
        if self.finished is not None and len(there) == len(outputs):
            self.finished(playing.request, there)

    def _tick(self) -> None:
        if self.progress is not None:
            self.progress(self.over, self.total)
