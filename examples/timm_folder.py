"""Repair a timm classifier with the folder of images it was trained on.

python examples/timm_folder.py photos/ weights.safetensors repaired/ --classes 10 --model resnet18 --size 32
"""

import argparse

import timm

import fspmu

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("photos", help="a folder per class")
parser.add_argument("weights", help="file of the network's weights, as timm reads them")
parser.add_argument("out", help="folder for everything that comes of it")
parser.add_argument("--classes", type=int, required=True, help="how many the network tells apart")
parser.add_argument("--model", default="resnet18", help="timm's name of it")
parser.add_argument("--size", type=int, help="side in pixels that it was trained at, where it is not timm's own")
parser.add_argument("--evaluation", help="a folder per class with labels that you trust")
options = parser.parse_args()

model = timm.create_model(options.model, num_classes=options.classes, checkpoint_path=options.weights)

result = fspmu.repair(model, options.photos, evaluation=options.evaluation, size=options.size, out=options.out)

worst = result.issues[result.issues["is_label_issue"]].sort_values("label_score").head(10)
print(worst[["id", "given_label", "suggested_label", "label_score"]])
print(f"result.model is a {type(result.model).__name__}, as it was; everything lies in {options.out}")
