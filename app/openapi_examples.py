"""One example of each thing that the API takes or gives, by the name of its schema. The tests hold them to it."""

from typing import Any

_CREATED = "2026-11-22T09:43:24Z"
_CONFIG: dict[str, Any] = {
    "source": "en",
    "target": "en-x-mine",
    "prompt": {"system": None, "template": "{text}"},
    "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    "training": {"num_train_epochs": 3, "per_device_train_batch_size": 8},
    "evaluation": {"holdout": 18, "metric": "bleu", "promote": "if_better"},
}
_ADAPTER: dict[str, Any] = {
    "name": "yoda",
    "source": "en",
    "target": "en-x-yoda",
    "current": 2,
    "traffic": {"1": 0.1, "2": 0.9},
    "versions": [1, 2],
    "resident": True,
    "description": "English to the English of a certain small green master",
}
_HYPERPARAMETERS = {"n_epochs": 3, "batch_size": 8, "learning_rate_multiplier": 1.0}
_CHAT = {
    "id": "chatcmpl-5c2a0d9b7e4f4a61b3c8d2e1",
    "object": "chat.completion",
    "created": 1795340604,
    "model": "yoda@2",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "In you, the Force is strong.",
                "refusal": None,
            },
            "finish_reason": "stop",
            "logprobs": None,
        }
    ],
    "usage": {"prompt_tokens": 14, "completion_tokens": 10, "total_tokens": 24},
    "system_fingerprint": "19a7ab4931497337072f4a09d6af9d0e",
}

EXAMPLES: dict[str, dict[str, Any]] = {
    "TranslateRequest": {"q": "The Force is strong in you!", "adapter": "yoda"},
    "TranslateResponse": {
        "translatedText": "In you, the Force is strong.",
        "adapter": "yoda@2",
        "usage": {"prompt_tokens": 14, "completion_tokens": 10},
        "finish_reason": "stop",
    },
    "DetectRequest": {"q": "Bonjour tout le monde"},
    "DetectedLanguage": {"confidence": 94.5, "language": "fr"},
    "SuggestRequest": {
        "q": "I see you.",
        "s": "See you, I do.",
        "source": "en",
        "target": "en-x-yoda",
    },
    "Suggested": {"success": True},
    "LanguageOut": {"code": "en", "name": "English", "targets": ["en-x-yoda"]},
    "FrontendSettings": {
        "charLimit": 20_000,
        "frontendTimeout": 500,
        "apiKeys": False,
        "keyRequired": False,
        "suggestions": True,
        "filesTranslation": False,
        "supportedFilesFormat": [],
        "language": {
            "source": {"code": "auto", "name": "Auto Detect"},
            "target": {"code": "en-x-yoda", "name": "English (yoda)"},
        },
        "maxAlternatives": 8,
        "maxNewTokens": 1024,
    },
    "AdapterOut": _ADAPTER,
    "CurrentVersion": {"version": 1},
    "VersionOut": {
        "ref": "yoda@2",
        "name": "yoda",
        "version": 2,
        "current": True,
        "size_bytes": 798_618,
        "seal": {
            "format": 1,
            "base_fingerprint": "19a7ab4931497337072f4a09d6af9d0e",
            "base_model": "dragoman-embedded-base",
            "prompt": {
                "system": None,
                "template": "{text}",
                "chat_template": "{% for m in messages %}…{% endfor %}",
            },
            "stop_token_ids": [3, 7],
            "decoding": {"temperature": 0.0},
            "source": "en",
            "target": "en-x-yoda",
            "description": _ADAPTER["description"],
            "dataset_id": "ds-08c6acf916b05723",
            "dataset_sha256": "08c6acf916b05723d420d3582134d02b25ee70050ad2f5c59bc3b8857104e742",
            "dataset_rows": 558,
            "job_id": "job-1ad9d01d4ad39b4f",
            "created_at": _CREATED,
            "config": {"source": "en", "target": "en-x-yoda"},
            "metrics": {"final_loss": 0.0023, "steps": 700},
            "evaluation": None,
            "content_sha256": "8e8178a68d4e4679df78eddc3894dd40d98ab8c78dceaf70c1d49572e62c51e0",
        },
    },
    "Dataset": {
        "id": "ds-08c6acf916b05723",
        "name": "yoda",
        "format": "csv",
        "rows": 180,
        "columns": ["prompt", "completion"],
        "mapping": {"source": "prompt", "target": "completion"},
        "sha256": "08c6acf916b05723d420d3582134d02b25ee70050ad2f5c59bc3b8857104e742",
        "created_at": _CREATED,
        "report": {
            "errors": [],
            "warnings": [],
            "unusable": 0,
            "duplicates": 2,
            "empty": 0,
            "too_long": 0,
            "tokens": {"min": 6, "median": 21, "p95": 34, "max": 51, "total": 3900},
        },
        "preview": [{"prompt": "I see you.", "completion": "See you, I do."}],
    },
    "RenderedRow": {
        "segments": [
            {"text": "<|user|>\nI see you.<|end|>\n<|assistant|>\n", "trained": False, "tokens": 9},
            {"text": "See you, I do.<|end|>\n", "trained": True, "tokens": 8},
        ],
        "text": "<|user|>\nI see you.<|end|>\n<|assistant|>\nSee you, I do.<|end|>\n",
        "prompt_tokens": 9,
        "completion_tokens": 8,
        "tokens": 17,
        "too_long": False,
        "held_out": False,
    },
    "JobRequest": {"dataset_id": "ds-08c6acf916b05723", "adapter": "mine", "config": _CONFIG},
    "Cancellation": {"publish": True},
    "JobOut": {
        "id": "job-02f991329c7d77e3",
        "adapter": "mine",
        "adapter_version": None,
        "dataset_id": "ds-08c6acf916b05723",
        "status": "running",
        "priority": "normal",
        "queue_position": None,
        "expected_start": None,
        "created_at": _CREATED,
        "started_at": _CREATED,
        "finished_at": None,
        "progress": {
            "step": 20,
            "total_steps": 69,
            "epoch": 0.87,
            "percent": 29.0,
            "tokens_per_second": 812.4,
            "eta_seconds": 21.3,
            "memory_mb": 911.0,
            "restarts": 0,
        },
        "loss_curve": {
            "train": [
                {"step": 20, "epoch": 0.87, "loss": 1.9, "learning_rate": 7e-4, "grad_norm": 2.1}
            ],
            "eval": [{"step": 14, "epoch": 0.61, "loss": 2.3}],
        },
        "evaluation": None,
        "error": None,
        "warnings": [],
        "config": _CONFIG,
        "attempt": 1,
        "checkpoints": [
            {"step": 20, "created_at": _CREATED, "adapter": "job:job-02f991329c7d77e3@20"}
        ],
    },
    "ChatRequest": {
        "model": "yoda",
        "messages": [{"role": "user", "content": "The Force is strong in you!"}],
    },
    "ChatCompletion": _CHAT,
    "Model": {"id": "yoda", "object": "model", "created": 1795340604, "owned_by": "dragoman"},
    "Deleted": {"id": "yoda@1", "object": "model", "deleted": True},
    "FileObject": {
        "id": "ds-08c6acf916b05723",
        "object": "file",
        "bytes": 21_410,
        "created_at": 1795340604,
        "filename": "yoda.jsonl",
        "purpose": "fine-tune",
        "status": "processed",
        "status_details": None,
        "expires_at": None,
    },
    "FineTuningRequest": {
        "model": "base",
        "training_file": "ds-08c6acf916b05723",
        "suffix": "mine",
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
    },
    "FineTuningJob": {
        "id": "job-02f991329c7d77e3",
        "object": "fine_tuning.job",
        "model": "base",
        "created_at": 1795340604,
        "finished_at": 1795340664,
        "estimated_finish": None,
        "fine_tuned_model": "mine@1",
        "organization_id": "dragoman",
        "result_files": [],
        "status": "succeeded",
        "training_file": "ds-08c6acf916b05723",
        "validation_file": None,
        "trained_tokens": 62_148,
        "seed": 42,
        "error": None,
        "hyperparameters": _HYPERPARAMETERS,
        "method": {"type": "supervised", "supervised": {"hyperparameters": _HYPERPARAMETERS}},
        "integrations": [],
        "metadata": {},
        "user_provided_suffix": "mine",
    },
    "FineTuningEvent": {
        "id": "ftevent-1795340610000-0",
        "object": "fine_tuning.job.event",
        "created_at": 1795340610,
        "level": "info",
        "message": "Step 20/69: training loss=1.90",
        "type": "metrics",
        "data": {"step": 20, "total_steps": 69, "train_loss": 1.9, "full_valid_loss": None},
    },
    "Checkpoint": {
        "id": "ftckpt-job-02f991329c7d77e3",
        "object": "fine_tuning.job.checkpoint",
        "created_at": 1795340664,
        "fine_tuned_model_checkpoint": "mine@1",
        "fine_tuning_job_id": "job-02f991329c7d77e3",
        "step_number": 69,
        "metrics": {"step": 69, "train_loss": 0.21, "full_valid_loss": 1.4},
    },
    "Health": {"status": "ok"},
    "Readiness": {
        "status": "ok",
        "checks": {
            "base_model": {"ok": True, "reason": None},
            "redis": {"ok": True, "reason": None},
            "volume": {"ok": True, "reason": None},
        },
    },
}

# Files are named, as their bytes would say little.
FORM_EXAMPLES: dict[tuple[str, str], dict[str, Any]] = {
    ("post", "/translate"): EXAMPLES["TranslateRequest"],
    ("post", "/detect"): EXAMPLES["DetectRequest"],
    ("post", "/suggest"): EXAMPLES["SuggestRequest"],
    ("post", "/datasets"): {"file": "yoda.csv", "on_error": "skip"},
    ("post", "/jobs"): {
        "file": "yoda.csv",
        "adapter": "mine",
        "config": '{"source": "en", "target": "en-x-mine"}',
    },
    ("post", "/adapters"): {
        "file": "yoda-2.zip",
        "name": "yoda",
        "prompt": '{"template": "{text}"}',
        "make_current": False,
    },
    ("post", "/v1/files"): {"file": "yoda.jsonl", "purpose": "fine-tune"},
}

# What is no JSON.
TEXT_EXAMPLES: dict[tuple[str, str], str] = {
    ("post", "/translate"): (
        'event: token\ndata: {"index": 0, "text": "In you, the Force"}\n\n'
        'event: token\ndata: {"index": 0, "text": " is strong."}\n\n'
        'event: done\ndata: {"translatedText": "In you, the Force is strong.", "adapter": "yoda@2", '
        '"usage": {"prompt_tokens": 14, "completion_tokens": 10}, "finish_reason": "stop"}\n\n'
    ),
    ("post", "/v1/chat/completions"): (
        'data: {"id": "chatcmpl-5c2a0d9b7e4f4a61b3c8d2e1", "object": "chat.completion.chunk", '
        '"created": 1795340604, "model": "yoda@2", "choices": [{"index": 0, "delta": {"content": '
        '"In you, the Force"}, "finish_reason": null, "logprobs": null}], '
        '"system_fingerprint": "19a7ab4931497337072f4a09d6af9d0e"}\n\n'
        "data: [DONE]\n\n"
    ),
    ("get", "/jobs/{job_id}/events"): (
        'event: status\ndata: {"status": "running"}\nid: 1795340605123-0\n\n'
        'event: metrics\ndata: {"progress": {"step": 20, "total_steps": 69}, "train": {"step": 20, '
        '"epoch": 0.87, "loss": 1.9, "learning_rate": 0.0008, "grad_norm": 2.1}}\n'
        "id: 1795340610456-0\n\n"
    ),
    ("get", "/jobs/{job_id}/log"): "2026-11-22 09:43:30,120 INFO worker.training: step 20 of 69\n",
    ("get", "/jobs/{job_id}/curve.svg"): '<svg xmlns="http://www.w3.org/2000/svg">…</svg>',
    ("get", "/v1/files/{file_id}/content"): (
        '{"messages": [{"role": "user", "content": "I see you."}, '
        '{"role": "assistant", "content": "See you, I do."}]}\n'
    ),
    ("get", "/datasets/{dataset_id}/download"): (
        '{"prompt": "I see you.", "completion": "See you, I do."}\n'
    ),
    ("get", "/suggestions"): (
        '{"prompt": "I see you.", "completion": "See you, I do.", "source": "en", '
        '"target": "en-x-yoda", "adapter": "yoda@2", "created_at": "2026-11-22T09:43:30Z"}\n'
    ),
    ("get", "/metrics"): 'dragoman_jobs{status="queued"} 2.0\n',
}
