"""The panel "lyra" in the viewer: which scene, which trajectories, which Gaussians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nerfstudio.viewer.viewer_elements import (
    ViewerButton,
    ViewerCheckbox,
    ViewerControl,
    ViewerDropdown,
    ViewerParameter,
    ViewerSlider,
    ViewerText,
)
from torch import nn

from lyra_ns.gaussians import Gaussians, num_kept, prune

if TYPE_CHECKING:
    from nerfstudio.viewer.viewer import Viewer

NO_SCALE_LIMIT = 5.0
"""Right end of the slider for the largest scale, at which nothing is hidden."""
BACKWARD_SHARE = 0.25
"""A browser starts this share of the scene's depth behind the reference camera."""


@dataclass(frozen=True)
class PanelState:
    """What the panel asks for, read at once so that one frame sees one state."""

    scene: str
    """Scene shown."""
    trajectories: tuple[int, ...]
    """Input trajectories that are switched on, in reading order."""
    keep_ratio: float = 1.0
    """Share of the Gaussians kept, most opaque first."""
    opacity_threshold: float = 0.0
    """Gaussians below this opacity are hidden."""
    max_scale: float = NO_SCALE_LIMIT
    """Gaussians longer than this along any axis are hidden (world units)."""

    def filter(self, gaussians: Gaussians) -> Gaussians:
        """The Gaussians [G] that the panel lets through; at least one stays."""
        if num_kept(gaussians.num, 1.0 - self.keep_ratio) > 0:
            gaussians = prune(gaussians, 1.0 - self.keep_ratio)
        visible = gaussians.opacities >= self.opacity_threshold
        if self.max_scale < NO_SCALE_LIMIT:
            visible &= gaussians.scales.amax(-1) <= self.max_scale
        index = visible.nonzero()[:, 0]
        return gaussians.select(index if len(index) else index.new_zeros(1))


class StartingView(ViewerControl):
    """Lets every browser start behind the reference camera, where else it would look away from the scene."""

    def __init__(self, centre_depth: Callable[[], float]) -> None:
        self._centre_depth = centre_depth

    def _setup(self, viewer: Viewer) -> None:
        super()._setup(viewer)
        from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO as SCALE

        def place(client: Any) -> None:
            # The reference camera looks along +y of nerfstudio's z-up world; its drawn frustum would fill the
            # picture from where it stands.
            depth = SCALE * self._centre_depth()
            client.camera.position = (0.0, -BACKWARD_SHARE * depth, 0.0)
            client.camera.look_at = (0.0, depth, 0.0)
            client.camera.up_direction = (0.0, 0.0, 1.0)

        viewer.viser_server.on_client_connect(place)


class ViewerPanel(nn.Module):
    """Controls of the viewer; a module without parameters, because the host looks for controls in modules."""

    def __init__(
        self,
        scenes: list[str],
        scene: str,
        trajectories: list[int],
        keep_ratio: float,
        centre_depth: Callable[[], float] = lambda: 1.0,
    ) -> None:
        super().__init__()
        self.starting_view = StartingView(centre_depth)
        self._trajectories = trajectories
        self.scene = ViewerDropdown("Scene", scene, scenes)
        self.trajectory_toggles = [ViewerCheckbox(f"Trajectory {number}", True) for number in trajectories]
        for number, toggle in zip(trajectories, self.trajectory_toggles, strict=True):
            # The host finds controls by attribute, not inside lists.
            setattr(self, f"trajectory_{number}", toggle)
        self.keep_ratio = ViewerSlider("Keep ratio", keep_ratio, 0.01, 1.0, 0.01, hint="Most opaque first")
        self.opacity_threshold = ViewerSlider("Opacity threshold", 0.0, 0.0, 0.9, 0.01)
        self.max_scale = ViewerSlider("Max scale", NO_SCALE_LIMIT, 0.01, NO_SCALE_LIMIT, 0.01)
        self.stats = ViewerText("Shown", "", disabled=True)
        self.reset = ViewerButton("Reset", lambda _: self._reset())

    def state(self) -> PanelState:
        """The present values of all controls."""
        switched_on = tuple(
            number
            for number, toggle in zip(self._trajectories, self.trajectory_toggles, strict=True)
            if toggle.value
        )
        return PanelState(
            scene=self.scene.value,
            # The decoder needs at least one input.
            trajectories=switched_on or (self._trajectories[0],),
            keep_ratio=float(self.keep_ratio.value),
            opacity_threshold=float(self.opacity_threshold.value),
            max_scale=float(self.max_scale.value),
        )

    def show_stats(self, text: str) -> None:
        """Write `text` into the panel, if a viewer is open."""
        if self.stats.gui_handle is not None and self.stats.value != text:
            self.stats.value = text

    def _reset(self) -> None:
        for control in vars(self).values():
            if isinstance(control, ViewerParameter) and control is not self.stats:
                control.value = control.default_value
