# ruff: noqa: E501 (a checksum does not wrap)
"""Published checksums of upstream's downloads, by part, version, architecture and file.

Facts, each taken from the sources that ``docs/versions.md`` names; never computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHECKSUMS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "kubernetes": {
        "1.36.3": {
            "amd64": {
                "kube-apiserver": "sha256:1f217d397234a6d065da663c6e086fdb02c0f0de97a0758ff3e6f3956f4ef8ab",
                "kube-controller-manager": "sha256:7edfe976d5a06c7a702d653e914095f4a732a04bb2139115b6a6eba6a9b781c7",
                "kube-scheduler": "sha256:b8955d4518c902110b50a825364339b1fb673822518ce0ba081a69ed634f8eee",
                "kube-proxy": "sha256:f1b5eb4462df9d98751264c6256628d90fdc72ba8e9a8025d1f75674f078f254",
                "kubelet": "sha256:46707a53209f826ad0f0d62371ac69cd00e78fd9a8176cf5f6f87f18f7f8b718",
                "kubectl": "sha256:ebbd080e7c2e275093b55915722043257eb24004363e20acb3c4d71919f88336",
            },
            "arm64": {
                "kube-apiserver": "sha256:16001b9d35d23634c361a1e2b7b0fc7abe186984af697ef7a869c8c8cded78b7",
                "kube-controller-manager": "sha256:27868a5c822824945b93f2d8a724a5dcd99affc68b47230ae766bff8795bbb84",
                "kube-scheduler": "sha256:ca1c7cd0033942bf9ef7eac80e18375d91f6f29487244c3e685f11163b01a88d",
                "kube-proxy": "sha256:5db204a2f79b26f676137052b45e391f6f8c93b85c85ef0a1f5d72647e3c7834",
                "kubelet": "sha256:57205a5daf5883873d87b4914e1e00bdd7707acd075714788cfb0fc1f60bc414",
                "kubectl": "sha256:3d86f24401c41ae5a46ac50eef8865fe891d3647d324a0836f6c63757a126e62",
            },
        },
        "1.35.7": {
            "amd64": {
                "kube-apiserver": "sha256:0317e382c47b721af23dfcf853073fbe76ebe26a592dffc42359e20be21047a8",
                "kube-controller-manager": "sha256:82c0dc57f9d066e4aef869c88386b2e1baacd30d12746dd09e08cf8e41492df8",
                "kube-scheduler": "sha256:93a3e6bb3521416aebef6382b3d0054d3cb304d8ecb37e062f6d7e9f7020e6e5",
                "kube-proxy": "sha256:1c22a8ff41efba86b32d50a24b1d07149e2f8a96a43b914bafd92b984f8f40f0",
                "kubelet": "sha256:e48cbb9c62351aa95f455bdae3c9a9e9d7d644027c231ade7a67b868b2be3258",
                "kubectl": "sha256:12e97f9d23a9f6cbb87b89becd6bd291e1a858a3379a4e11e2c822c4c1530052",
            },
            "arm64": {
                "kube-apiserver": "sha256:4e5fe160e7b90e84faab827e71a101f0472a920385abfb7f6bba36ee783529e1",
                "kube-controller-manager": "sha256:9125fca53876e58137305cf177bc2c67eab38adc7f2f70cfe1444d124c39d012",
                "kube-scheduler": "sha256:571faf2a0d19951aade0b3d4f5f2e0b2504ee3a14ccdd2cdd0668ccd04a3c33c",
                "kube-proxy": "sha256:216b76b4ab7f642a1e305f6402a0a466af7cea1287bf89fefb9269396ba04dc2",
                "kubelet": "sha256:0dc3f53fc51f6a6c26c437ec9eded016106ef931db2dd9b3905c656796bed438",
                "kubectl": "sha256:5103d45b8881434d417694057b8ccb5ae79fd310a5c5c13e403c5e62e15909be",
            },
        },
        "1.34.10": {
            "amd64": {
                "kube-apiserver": "sha256:daef57d947b3f9cf3058e7c9635339ee4a54de7ff2c7d94e0c5721280e088396",
                "kube-controller-manager": "sha256:2096d333229562714e9ea683eeb745d36b49e0d48d871a8f64892bf349c9294b",
                "kube-scheduler": "sha256:bbb86cdc7c0999d1cf6e1bd5fec539b0c80e594ce1b726b98b453f1b825f4d32",
                "kube-proxy": "sha256:a57b516767aea789d50786916aadae7988061a48d8691cb76a512bc9f6016521",
                "kubelet": "sha256:59669fd1233989fda877aa8a785bd56d4c73e739afcd90596c62e0172af2738c",
                "kubectl": "sha256:95bd70842bd11a524d24acd5b68726899e3488e153e45e2b4ae846545beda050",
            },
            "arm64": {
                "kube-apiserver": "sha256:23a8e7df99269347c2006a99de4f426fad36f290dcfb70de9ebc25e43d5b6cb5",
                "kube-controller-manager": "sha256:a5439a457c8115e75b4747da90e793ca6d209faf20db04ca273ae1763caec5a1",
                "kube-scheduler": "sha256:9b18db732f4a7eae3c488fb321f7c848a356e6a7ebd3b2dca1d236fe2788584e",
                "kube-proxy": "sha256:86dbc6663e3b5ee3baad5110042272a0c05bc5e1c98c5001998f50ed448d863e",
                "kubelet": "sha256:8f9305c7c639056e9544af4d360119af03c43cec470b2fb28ddaca26525b2564",
                "kubectl": "sha256:52d3aeefea32fdfa3671ccd636be5da463ddfd0a2fc09d7bcbaedcff4c76cad5",
            },
        },
        "1.33.13": {
            "amd64": {
                "kube-apiserver": "sha256:734d5d7ca2ad533cff1f705ea44a4b29bf0a515e467ff0678884db10e2461580",
                "kube-controller-manager": "sha256:99a6d7cd64a8ad58fea91cbda78ed2051f64c984b82e81e9fdea50a09b63c23c",
                "kube-scheduler": "sha256:9137677bc5459cb7c39edd13b8eaf9c94b6534934f3636985633b691dc482ded",
                "kube-proxy": "sha256:2253fdb7715d58cf8d27c0a526bece9d3a2db3fce39471db212f5de136575e44",
                "kubelet": "sha256:0415ef7778646172f7aad830cbe09a7d903461eef9e15cd34193b85d95dfff0d",
                "kubectl": "sha256:316d712726d857c20744c57cb36aa47cfc79bc0af7e82cebf3780244b654c073",
            },
            "arm64": {
                "kube-apiserver": "sha256:b879d2bbc059bf71da428ad386582bb95e11b1d3a43b6d9451376ddc89e03735",
                "kube-controller-manager": "sha256:31238044e9ddad1e83af405eee7a22ba514f62863192a338854e15026a605214",
                "kube-scheduler": "sha256:bb6c1d2a563761c04b38968011d44da1818073e7c1538d215e1d0cccccff8e93",
                "kube-proxy": "sha256:3ddae5187df21ca988b3dabc5c21248f8e769f930bd262618c63a0a327a8de74",
                "kubelet": "sha256:db573f065eb9f9153b60270b209ea7992b79849ecac4387dbda88401fb2ed0ff",
                "kubectl": "sha256:9fe8aadd5aab9421978c7ac95de6fad304a3c4c0ce9dbf4127579779e0699080",
            },
        },
        "1.32.13": {
            "amd64": {
                "kube-apiserver": "sha256:02d8dfd91bd567f962bd41037a9658a5ceb7eae9fb841eb147b1090da1cc9602",
                "kube-controller-manager": "sha256:475223ea82ecaa1d8c602bc4533d9084bd2ebfa268946ad878c1f1574164cf7a",
                "kube-scheduler": "sha256:f28eae8144413156dd28c1758f148fc55732ab07b2f485599a8ca1340fe10b50",
                "kube-proxy": "sha256:8e28ebdb8bad2db9d84093b216d4f04eddcac3acf5b67b539fd8b14478019d64",
                "kubelet": "sha256:4bc04c3f50725fa29ac9f0626c553941cfe07d128b3a313b7f5d176b07ab786e",
                "kubectl": "sha256:db2ae479a63f3665d7f704ab18c0d4d4050144237980763221835b7305703c4c",
            },
            "arm64": {
                "kube-apiserver": "sha256:7391dffe8c60bd9988e63d7a4f5f107a366dea529f750e5a84aab882f236bc37",
                "kube-controller-manager": "sha256:74b6b88dc79a2cc5ca1d2a78cd03f5afb97194cf35f165e249e31868f66e625e",
                "kube-scheduler": "sha256:e95526e3cadd1ebbef2cf5c5ea7a3a68fa02979265e9f334819fa8448de34f56",
                "kube-proxy": "sha256:5a9cf21816ce8e4df69f640b792770b3693e582a440b5f57d6fa58381562a1bc",
                "kubelet": "sha256:46b5b8d313b47aa027e5a874fb8301503e848f313b56f54b9a2697f75409913c",
                "kubectl": "sha256:b1f87f196633a89208546d79bfa4e2470bda70e7bf42c4d3adb008ec208da9d1",
            },
        },
    },
    "etcd": {
        "3.6.14": {
            "amd64": "sha256:ffe840ff9295808e88cce2794a18a5ac87f12a5203c8314d0bf6aa119b41bac5",
            "arm64": "sha256:fa1b80565ee6fc2df1ae6f57a508b221f3ecc7d591c317c581cd8281b0842b3e",
        },
        "3.6.13": {
            "amd64": "sha256:b4928654aed84d90952620c7144555e4186d795e1e7414e65fe0cf6265fd0465",
            "arm64": "sha256:5ab53ff70301fa9d782fa4b59fdfc1fae49ffdf427a0afb3cd313a93449800fc",
        },
        "3.5.33": {
            "amd64": "sha256:5025b5b24d81a9616b6e284ccd439b9a3df055ef8fdcdc142af3ec8f6a3b3c95",
            "arm64": "sha256:0764c5c0acef155f4bfa0487791cc5776adef66315bf16ec0653883bfd463a90",
        },
        "3.5.32": {
            "amd64": "sha256:83532f9290ee89106c4c9d0467220f65623c1faadaab800d727f7beccce4d7dd",
            "arm64": "sha256:89f3ec49bc026c77ab5862c34f0623f09b48ec75e659082c92829669c6e36b3c",
        },
    },
    "containerd": {
        "2.3.4": {
            "amd64": "sha256:9d68969855fbf676cdb8ed758e420fb048d61f984f61de3e53eddfebe484d168",
            "arm64": "sha256:a985fbb7e18fc0362d31a055338f5d7b0e087a3e27f14c70d1c5965399a29f95",
        },
        "2.2.7": {
            "amd64": "sha256:91cd216ea26a1b8b512219d3f205375c967e7b7de4dae571bc3dd16bfacd34b5",
            "arm64": "sha256:84eb0a161e20ad45465202fa2d6d93b3d9b74666c363e9908706d590a86e2618",
        },
        "2.1.9": {
            "amd64": "sha256:0083d2a4c2e77eeb20e55b6d955822fb957ff386c0c23959c8b27f598317586c",
            "arm64": "sha256:2fbc3053b09812092f6bf316a509d849960eb0cb9332ec88c2f49676d648fd67",
        },
        "2.0.11": {
            "amd64": "sha256:249457e108b64f8c44bcf5928acc1d3300253c922414f5a8329a754303019d50",
            "arm64": "sha256:a8261bd5cc78cc46f01bbc229320b9781f8c03dcfedcbff25dfd4f12e43e5d74",
        },
        "1.7.34": {
            "amd64": "sha256:640f989745020ea4897ad0a3d7d977863a7279d3f2e132792fc62c25a45bda50",
            "arm64": "sha256:824cbd16af3bdfc1b1836338350630ae1b6a58c7466636a4bed10549790090ab",
        },
    },
    "runc": {
        "1.4.3": {
            "amd64": "sha256:f6ae8efc0fa40079e1475e97cbe9d1bd3f106a28d6af78a11d9f1bd565515e60",
            "arm64": "sha256:633301e2e32f8a5ad54031aab4901eb00308bec677dd15faa2751e8f9dab5ca4",
        },
        "1.3.6": {
            "amd64": "sha256:3f3921dbbee7723e9868f97e88e51ffc910206e3ba55646e74d93d24ea76023c",
            "arm64": "sha256:6be27a061ef89bb14c6cb495405bba80f46cea213b8f79378a6086b1bac6b747",
        },
        "1.2.9": {
            "amd64": "sha256:b21fda1d5a1510b19c3f6fb43ecb3a92887654a9d0c2b64e84b8b08f24ff0e30",
            "arm64": "sha256:c155ae4716480be73a1c3bbedfa23df179800ba39ca83eb59f5b1b9b72a7ecbd",
        },
        "1.1.15": {
            "amd64": "sha256:d218e1f8be4dcb1f288dea754faee342375a36f695eac5ab37fc8b7270a78763",
            "arm64": "sha256:c680f8c470ffb228944ca80e1a4dbb6768b3ad97057350852e128847f9dd10bc",
        },
    },
    "cni-plugins": {
        "1.9.1": {
            "amd64": "sha256:b98f74a0f8522f0a83867178729c1aa70f2158f90c45a2ca8fa791db1c76b303",
            "arm64": "sha256:56171987d3947707c3563db2f4001bccaf50fd63468611b9f3cbecb1375ee7ec",
        },
        "1.8.0": {
            "amd64": "sha256:ab3bda535f9d90766cccc90d3dddb5482003dd744d7f22bcf98186bf8eea8be6",
            "arm64": "sha256:57ce466fc3b79db1f19b8f4c63e07a1112306efa53c94fe810a2150dd9e07ddb",
        },
        "1.7.1": {
            "amd64": "sha256:1a28a0506bfe5bcdc981caf1a49eeab7e72da8321f1119b7be85f22621013098",
            "arm64": "sha256:119fcb508d1ac2149e49a550752f9cd64d023a1d70e189b59c476e4d2bf7c497",
        },
        "1.6.2": {
            "amd64": "sha256:b8e811578fb66023f90d2e238d80cec3bdfca4b44049af74c374d4fae0f9c090",
            "arm64": "sha256:01e0e22acc7f7004e4588c1fe1871cc86d7ab562cd858e1761c4641d89ebfaa4",
        },
    },
    "flannel": {
        "0.27.4": {
            "amd64": "sha256:fc1233aac3ad2707d14c9ae42016b5402753f755f0d07cc5c41dc4190e95d299",
            "arm64": "sha256:aa4f59bff09603ad10634c5a930afa57631dd99d8da0b7baeaadc655f00831b7",
        },
    },
}
