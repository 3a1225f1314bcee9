"""Which paper each network of the catalogues is of: what `./convoy models list --catalogue` cites."""

RESNET = "He et al. 2015, https://arxiv.org/abs/1512.03385"

# start of the names → paper; the first that fits counts
PAPERS = {
    "lenet5": "LeCun et al. 1998, http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf",
    "overfeat": "Sermanet et al. 2014, https://arxiv.org/abs/1312.6229",
    "airnet": "Jordan 2024, https://arxiv.org/abs/2404.00498",
    "alexnet_2012": "Krizhevsky et al. 2012, https://papers.nips.cc/paper/4824",
    "alexnet": "Krizhevsky 2014, https://arxiv.org/abs/1404.5997",
    "vgg": "Simonyan and Zisserman 2014, https://arxiv.org/abs/1409.1556",
    "resnet_ts": "Wang et al. 2017, https://arxiv.org/abs/1611.06455",
    "resnet": RESNET,
    "plain": RESNET,
    "nin": "Lin et al. 2013, https://arxiv.org/abs/1312.4400",
    "googlenet": "Szegedy et al. 2014, https://arxiv.org/abs/1409.4842",
    "inception_v3": "Szegedy et al. 2015, https://arxiv.org/abs/1512.00567",
    "squeezenet": "Iandola et al. 2016, https://arxiv.org/abs/1602.07360",
    "mobilenet_v2": "Sandler et al. 2018, https://arxiv.org/abs/1801.04381",
    "efficientnet_lite": "Tan and Le 2019, https://arxiv.org/abs/1905.11946",
    "m5": "Dai et al. 2016, https://arxiv.org/abs/1610.00087",
    "voxnet": "Maturana and Scherer 2015, https://doi.org/10.1109/IROS.2015.7353481",
}


def paper_of(name: str) -> str:
    """Authors, year and address; raises KeyError for a network that cites none."""
    for start, paper in PAPERS.items():
        if name.startswith(start):
            return paper
    raise KeyError(f"models/papers.py has no paper for {name}")
