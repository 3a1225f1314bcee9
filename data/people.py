"""Batches of P people with K pictures each: what losses that compare pictures are trained on.

An epoch has as many pictures as the split, but people take turns, not pictures: whoever has two or more is seen equally
often. Who comes when, and with which pictures, depends on nothing but (seed, epoch), as in data.stream.
"""

from dataclasses import dataclass

import numpy as np

from data.random import SampleGenerator


@dataclass(frozen=True)
class People:
    """Who is on each picture of a split, and how many pictures of a person a batch has."""

    labels: np.ndarray  # (N,) int64
    num_pictures: int  # K

    def most_people(self) -> int:
        """How many there are with two pictures or more."""
        return int((np.unique(self.labels, return_counts=True)[1] > 1).sum())


def people_order(
    generator: SampleGenerator, people: People, num_batches: int, num_people: int, world_size: int = 1
) -> np.ndarray:
    """An epoch's samples, batch after batch: (num_batches * num_people * K,) int64.

    A batch has `num_people` different people. Of one with fewer than K pictures, these come again until there are K;
    one with a single picture has no pair, and is left out. In a batch, rank r of `world_size` takes every place r, r +
    world_size, ...; there it finds its own people, K pictures of each together. One rank's after the other's are those
    of a lone worker, in its order; where `world_size` does not divide `num_people`, two ranks may share a person.
    """
    labels, K = people.labels, people.num_pictures
    who, first, counts = grouped(labels)
    rounds_batches = len(who) // num_people  # in which everybody comes at most once
    num_rounds = -(-num_batches // rounds_batches)
    turns = np.argsort(generator.uniform(who, "people", num_rounds), axis=0, kind="stable")  # (M, rounds)
    drawn = generator.uniform(np.arange(len(labels)), "pictures", num_rounds)  # (N, rounds)
    batches = []
    for number in range(num_rounds):
        pictures = np.lexsort((drawn[:, number], labels))  # each person's together, in a random order
        seats = turns[: rounds_batches * num_people, number]
        places = first[seats][:, None] + np.arange(K) % counts[seats][:, None]  # (seats, K)
        batches.append(pictures[places].reshape(rounds_batches, num_people, K))
    chosen = np.concatenate(batches)[:num_batches]  # (S, P, K)
    by_rank = chosen.reshape(num_batches, world_size, -1)  # P / W people a rank, one after the other
    return by_rank.swapaxes(1, 2).reshape(-1)


def grouped(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """People with two pictures or more: their labels, where their pictures begin in order of labels, and how many."""
    who, counts = np.unique(labels, return_counts=True)
    first = np.cumsum(counts) - counts
    several = counts > 1
    return who[several], first[several], counts[several]
