"""What ZeRO-2 spreads over the ranks, as whole tensors by parameter name and back.

For each parameter group DeepSpeed gives a rank one flat float32 tensor, `master`, with its part of the weights; the
optimizer's moments are as long. Whole tensors do not depend on the number of ranks, so that a checkpoint of three can
be taken up by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from distill.optim.optimizers import AdamW

BUCKET = 32 * 2**20
"""Values that are gathered at once for a checkpoint: 128 MiB beside everything else on the device."""

Named = tuple[str, nn.Parameter]
State = dict[str, dict[str, Tensor]]


class Shards:
    """This rank's shards of `groups`, the named parameters of each parameter group. total: sums over the ranks."""

    def __init__(
        self, zero: Any, kind: AdamW, groups: Sequence[Sequence[Named]], total: Callable[[Tensor], Tensor]
    ) -> None:
        self._zero, self._kind, self._groups, self._total = zero, kind, groups, total

    @property
    def masters(self) -> list[Tensor]:
        """Flat float32 weights, one tensor a group."""
        return cast(list[Tensor], self._zero.single_partition_of_fp32_groups)

    def start_optimizer(self) -> None:
        """Gives the optimizer fresh state."""
        for master in self.masters:
            self._kind.start(self._zero.optimizer, master)

    def full_state(self, averages: Sequence[Tensor], keep: bool = True) -> State:
        """Whole tensors by parameter name: `master`, the optimizer's moments and scalars (as `exp_avg`, `exp_avg_sq`,
        `step`), `ema` where there are averages (shards, one a group). Collective.

        Tensors are float32 on the CPU (scalars may be float64), and later updates do not change them. keep: False on a
        rank that only takes part in gathering; it gets nothing.
        """
        kind, inner = self._kind, self._zero.optimizer
        state: State = {}
        for number, (group, master) in enumerate(zip(self._groups, self.masters, strict=True)):
            if keep:
                scalars = {n: torch.tensor(kind.scalar(inner, master, n), dtype=d) for n, d in kind.scalars.items()}
                state |= {name: {n: value.clone() for n, value in scalars.items()} for name, _ in group}
            for slot in ("master", *kind.moments, *(("ema",) if averages else ())):
                if slot == "master":
                    shard = master.detach()
                else:
                    shard = averages[number] if slot == "ema" else kind.moment(inner, master, slot)
                for bucket, whole in self._whole(group, shard):
                    copies = whole.to("cpu").split([p.numel() for _, p in bucket]) if keep else ()
                    for (name, p), values in zip(bucket, copies, strict=keep):
                        state[name][slot] = values.reshape(p.shape)
        return state

    def load_full_state(self, state: State, averages: Sequence[Tensor], moments: bool) -> None:
        """Puts what `full_state` returned into this rank's shards and the parameters.

        averages: shards to fill with `ema`, or with the weights where there is none. moments: False starts the
        optimizer afresh.
        """
        for number, (group, master) in enumerate(zip(self._groups, self.masters, strict=True)):
            if averages:
                averages[number].copy_(
                    self._part(group, master, {n: state[n].get("ema", state[n]["master"]) for n, _ in group})
                )
            master.data.copy_(self._part(group, master, {name: state[name]["master"] for name, _ in group}))
            for name, p in group:
                p.data.copy_(state[name]["master"])
            if not moments:
                continue
            inner = self._zero.optimizer
            for slot in self._kind.moments:
                self._kind.put_moment(
                    inner, master, slot, self._part(group, master, {n: state[n][slot] for n, _ in group})
                )
            for slot in self._kind.scalars:
                self._kind.put_scalar(inner, master, slot, float(state[group[0][0]][slot]))
        if not moments:
            self.start_optimizer()

    def copy_whole(self, shards: Sequence[Tensor], targets: Sequence[nn.Parameter]) -> None:
        """Writes the whole values behind `shards` (one a group) into `targets`, in the parameters' order. Collective.

        Fewer targets take the values of the first groups.
        """
        left = iter(targets)
        for group, shard in zip(self._groups, shards, strict=True):
            mine = [target for _, target in zip(group, left, strict=False)]
            if not mine:
                return
            assert len(mine) == len(group), "targets must fill whole groups"
            first = 0
            for bucket, whole in self._whole(group, shard):
                for target, values in zip(
                    mine[first : first + len(bucket)], whole.split([p.numel() for _, p in bucket]), strict=True
                ):
                    target.data.copy_(values.reshape(target.shape))
                first += len(bucket)

    def _whole(self, group: Sequence[Named], shard: Tensor) -> Iterator[tuple[list[Named], Tensor]]:
        """Buckets of the group's parameters, each with their values, flat and one after the other. Collective.

        One sum for many parameters: DeepSpeed's `safe_get_full_*` need one for each parameter and kind of state.
        """
        for bucket in _buckets(group):
            whole = torch.zeros(sum(p.numel() for _, p in bucket), device=shard.device)
            for (_, p), values in zip(bucket, whole.split([p.numel() for _, p in bucket]), strict=True):
                for to, of in _fragments(p):
                    values.narrow(0, to.start, to.numel).copy_(shard.narrow(0, of.start, of.numel))
            yield bucket, self._total(whole)

    def _part(self, group: Sequence[Named], master: Tensor, whole: dict[str, Tensor]) -> Tensor:
        """This rank's part of whole tensors by parameter name: the inverse of `_whole`."""
        shard = torch.zeros_like(master)
        for name, p in group:
            for to, of in _fragments(p):
                shard.narrow(0, of.start, of.numel).copy_(whole[name].reshape(-1).narrow(0, to.start, to.numel))
        return shard


def _fragments(p: nn.Parameter) -> list[tuple[Any, Any]]:
    """Where in the parameter, and where in the shard, the part of it lies that this rank has, if any."""
    mapping: Any = p._hp_mapping  # type: ignore[attr-defined]
    return [] if mapping is None else [(mapping.lp_fragment_address, mapping.hp_fragment_address)]


def _buckets(params: Sequence[Named]) -> Iterator[list[Named]]:
    """Runs of parameters of at most BUCKET values together, or of one parameter."""
    bucket: list[Named] = []
    size = 0
    for name, p in params:
        if bucket and size + p.numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, p))
        size += p.numel()
    yield bucket
