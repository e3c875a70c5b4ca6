from lyra_ns.cameras import CameraPath as CameraPath
from lyra_ns.gaussians import Gaussians as Gaussians
from lyra_ns.generation.in_memory import Generated as Generated
from lyra_ns.generation.in_memory import generate as generate
from lyra_ns.lyra import Evaluation as Evaluation
from lyra_ns.lyra import Lyra as Lyra
from lyra_ns.lyra import evaluate as evaluate
from lyra_ns.rendering import Rendered as Rendered
from lyra_ns.rendering import RenderSettings as RenderSettings
from lyra_ns.rendering import render as render
from lyra_ns.scene import InputScene as InputScene
from lyra_ns.scene import open_scene as open_scene

__version__: str
