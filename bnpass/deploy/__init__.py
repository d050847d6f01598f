"""From a trained ONNX model to the one that is deployed: normalise, fold, narrow, prove, write."""

from __future__ import annotations

from bnpass.deploy.pipeline import deploy, deploy_file, plan_deployment
from bnpass.deploy.proofs import Proofs, verified
from bnpass.deploy.result import Deployed, DeployOptions

__all__ = [
    "DeployOptions",
    "Deployed",
    "Proofs",
    "deploy",
    "deploy_file",
    "plan_deployment",
    "verified",
]
