"""Code that edge and cloud share: wire, images, detections, bundles. Imports no other package."""
