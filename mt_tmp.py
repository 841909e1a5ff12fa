import logging, time
logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
from pathlib import Path
from benchmarks.demo_model.classifier import trained
t=time.process_time(); trained(Path("output/quality")); logging.info("trained %s CPU s", time.process_time()-t)
