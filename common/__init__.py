"""What both ends must agree on: words, wire, images, detections, bundles. Imports no other room."""
