"""The mixture of experts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from lazyload.architecture.checks import require, require_limit, require_one_of, require_positive
from lazyload.architecture.mlp import ACTIVATIONS, MLP, Activation
from lazyload.architecture.norm import Norm
from lazyload.display.values import differing_fields

Scores = Literal["softmax", "sigmoid", "sqrtsoftplus", "topk_softmax", "sparsemixer"]
"""What a router makes of its logits."""


@dataclass(frozen=True, kw_only=True)
class Experts:
    """Gated MLPs of which a router chooses a few for every token, and optionally one that sees all tokens.

    Attributes:
        num_experts: Routed experts.
        num_selected: Experts a token is sent to.
        mlp_dim: Width of one expert.
        activation: Of the experts' gates.
        shared_mlp_dim: Width of the shared expert; 0 for none.
        shared_bias: Whether the shared expert has biases.
        shared_gate: Whether a token decides how much of the shared expert it takes (Qwen 2 MoE, Qwen 3 Next).
        scores: "softmax" over all experts, "sigmoid" of each, "sqrtsoftplus": the root of the softplus of each
            (DeepSeek V4), "topk_softmax": over the selected ones only, or "sparsemixer": the best one, then the best of
            the others, each weighted by the softmax over those that are almost as good (Phi 3.5 MoE,
            https://arxiv.org/abs/2409.12136); nothing is normalized then.
        margin: "sparsemixer": how far behind the best, relative to the larger of both, is almost as good.
        normalize: Whether the selected weights are divided by their sum.
        least_sum: The least that they are divided by (ERNIE 4.5).
        scale: What the weights are multiplied with at the end.
        weighted_inputs: Whether weights multiply what goes into an expert instead of what comes out (Llama 4).
        num_groups: Groups for group-limited selection; 1 for none.
        num_selected_groups: Groups a token may use.
        group_score: A group's score is its best expert's ("max") or the sum of its two best ("top2").
        by_token: Whether a table says which experts each token of the vocabulary is sent to, and the router only how
            they are weighted (the first layers of DeepSeek V4).
        selection_bias: Whether a correction bias is added to the scores for the selection only.
        router_bias: Whether the router has a bias.
        router_norm: The router's own norm, whose result is divided by `sqrt(embed)`; None for none (Gemma 4).
        expert_scale: Whether each expert has a learned factor of its weights (Gemma 4).
        bias: Whether the experts have biases.
        clamped_swiglu: gpt-oss: `(alpha, limit)` of its clamped gate; None for the activation.
        limit: What gates and up projections are cut off at, of the shared expert, too; see `MLP`.
    """

    name: ClassVar[str] = "moe"

    num_experts: int
    num_selected: int
    mlp_dim: int
    activation: Activation = "silu"
    shared_mlp_dim: int = 0
    shared_bias: bool = False
    shared_gate: bool = False
    scores: Scores = "softmax"
    margin: float = 0.0
    normalize: bool = True
    least_sum: float = 0.0
    scale: float = 1.0
    weighted_inputs: bool = False
    num_groups: int = 1
    num_selected_groups: int = 1
    group_score: Literal["max", "top2"] = "max"
    by_token: bool = False
    selection_bias: bool = False
    router_bias: bool = False
    router_norm: Norm | None = None
    expert_scale: bool = False
    bias: bool = False
    clamped_swiglu: tuple[float, float] | None = None
    limit: float | None = None

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_positive(self, "num_experts", "num_selected", "mlp_dim", "num_groups", "num_selected_groups")
        require_one_of(self, "activation", ACTIVATIONS)
        require_one_of(self, "scores", get_args(Scores))
        require_limit(self, self.limit)
        of_all = self.scores not in ("topk_softmax", "sparsemixer") and self.num_groups == 1 and not self.selection_bias
        require(of_all or not self.by_token, self, "a table of tokens selects of all experts, without a bias")
        two = self.num_selected == 2 and self.num_groups == 1 and not self.selection_bias
        require(two or self.scores != "sparsemixer", self, "sparsemixer selects two of all experts, without a bias")
        require_one_of(self, "group_score", ("max", "top2"))
        require(self.shared_mlp_dim >= 0, self, f"shared_mlp_dim = {self.shared_mlp_dim} must not be negative")
        shared = self.shared_mlp_dim > 0
        require(shared or not (self.shared_bias or self.shared_gate), self, "there is no shared expert to have a bias")
        require(
            self.num_experts % self.num_groups == 0 and self.num_selected_groups <= self.num_groups,
            self,
            f"num_groups = {self.num_groups} does not fit num_experts = {self.num_experts} and "
            f"num_selected_groups = {self.num_selected_groups}",
        )
        available = self.num_selected_groups * self.num_experts // self.num_groups
        require(
            self.num_selected <= available, self, f"num_selected = {self.num_selected}, but a token can use {available}"
        )

    @property
    def shared(self) -> MLP | None:
        """The shared expert, where there is one."""
        if not self.shared_mlp_dim:
            return None
        return MLP(mlp_dim=self.shared_mlp_dim, activation=self.activation, bias=self.shared_bias, limit=self.limit)

    @property
    def axes(self) -> Mapping[str, int]:
        """The experts and their widths; gate and up are one role with an axis of two."""
        axes = {"expert": self.num_experts, "expert_mlp": self.mlp_dim, "gate_up": 2}
        if self.shared_mlp_dim:
            axes["shared_mlp"] = self.shared_mlp_dim
        return axes | {"selected": self.num_selected} if self.by_token else axes

    @property
    def parameters(self) -> Mapping[str, str]:
        """Router, experts, shared expert.

        The selection bias stays in float32, in which the routing of a token is decided.
        """
        table = {
            "router.kernel": "router : embed expert",
            "{gate_up:gate,up}_proj.kernel": "experts.in : expert embed expert_mlp",
            "down_proj.kernel": "experts.out : expert expert_mlp embed",
        }
        if self.router_bias:
            table["router.bias"] = "router.bias : expert"
        if self.router_norm is not None:
            table["router_norm.scale"] = "router.norm : embed"
        if self.expert_scale:
            table["expert_scale"] = "router.expert_scale : expert"
        if self.by_token:
            table["token_experts"] = "router.token_experts : vocab selected ; as int32"
        if self.selection_bias:
            table["selection_bias"] = "router.selection_bias : expert ; as float32"
        if self.bias:
            table |= {
                "{gate_up:gate,up}_proj.bias": "experts.in.bias : expert expert_mlp",
                "down_proj.bias": "experts.out.bias : expert embed",
            }
        if self.shared_mlp_dim:
            table |= {
                "shared_experts.{gate_up:gate,up}_proj.kernel": "shared.in : embed shared_mlp",
                "shared_experts.down_proj.kernel": "shared.out : shared_mlp embed",
            }
        if self.shared_bias:
            table |= {
                "shared_experts.{gate_up:gate,up}_proj.bias": "shared.in.bias : shared_mlp",
                "shared_experts.down_proj.bias": "shared.out.bias : embed",
            }
        if self.shared_gate:
            table["shared_gate.kernel"] = "shared.gate : embed 1"
        return table
