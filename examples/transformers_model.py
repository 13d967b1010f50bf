"""Repair a Hugging Face image classifier with the data set it was fine-tuned on.

python examples/transformers_model.py my-checkpoint/ photos/ repaired/
"""

import argparse

from datasets import load_dataset
from transformers import AutoModelForImageClassification

import fspmu

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="folder that save_pretrained wrote, or a name on the Hub")
parser.add_argument("photos", help="a folder per class, as `datasets` reads it")
parser.add_argument("out", help="folder for the model, its model card and the label issues")
options = parser.parse_args()

model = AutoModelForImageClassification.from_pretrained(options.model)
photos = load_dataset("imagefolder", data_dir=options.photos, split="train")

result = fspmu.repair(model, photos, out=options.out)

print(result.issues["action"].value_counts())
print(f"{type(result.model).__name__}.from_pretrained('{options.out}/pretrained') loads it again")
