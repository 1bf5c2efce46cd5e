"""Options of the stock `generate`: which ones turn sampling on, and which are not supported."""

from __future__ import annotations

#: new tokens of a reply if neither the call nor a generation config sets a length
MAX_NEW_TOKENS = 400
#: options that have no effect in greedy decoding; one of them turns sampling on
SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "top_h",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)
#: options of the stock `generate` that are not supported, with the reason or what to use instead
REFUSED = {
    "assistant_model": "the model drafts with its own exits: use policy= and accept='exact'",
    "assistant_early_exit": "use policy='static@DEPTH' and accept='exact'",
    "prompt_lookup_num_tokens": "drafts come from the policy's early exits",
    "prefix_allowed_tokens_fn": "it counts rows that may have ended: use a logits processor",
    "penalty_alpha": "contrastive search runs the model on many candidates",
    "dola_layers": "exits are read out by the policy and the exit heads",
    "encoder_repetition_penalty": "use repetition_penalty",
    "encoder_no_repeat_ngram_size": "use no_repeat_ngram_size",
    "watermarking_config": "its state cannot be rolled back with a rejected draft",
    "guidance_scale": "it needs a second prompt beside each",
    "negative_prompt_ids": "it needs a second prompt beside each",
    "negative_prompt_attention_mask": "it needs a second prompt beside each",
    "custom_generate": "this library decodes",
    "past_key_values": "this library has its own cache: pass the whole prompt",
    "cache_implementation": "this library has its own cache",
    "use_cache": "pending positions need the cache",
    "position_ids": "positions follow from the attention mask",
    "token_healing": "the prompt is not changed",
    "output_scores": "see eepolicy.probe for the distributions at every depth",
    "output_logits": "see eepolicy.probe for the distributions at every depth",
    "output_hidden_states": "see HookedModel.hidden_states, or record=True",
    "output_attentions": "attention weights are not stored",
}
#: values of these options that have no effect
NEUTRAL = {
    "use_cache": True,
    "guidance_scale": 1,
    "encoder_repetition_penalty": 1,
}
#: those that change tokens, and are refused in the model's own generation config too
CHANGES_TOKENS = frozenset(
    {
        "encoder_repetition_penalty",
        "encoder_no_repeat_ngram_size",
        "guidance_scale",
        "token_healing",
        "watermarking_config",
    }
)
#: arguments of the stock decoding method that are used here, or that change no token
IGNORED_ARGUMENTS = frozenset(
    {
        "attention_mask",
        "inputs_embeds",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "past_key_values",
        "position_ids",
        "synced_gpus",
        "use_cache",
    }
)
