"""The tokenizer classes of transformers 5.24 and the models that have them.

`lmjax.data.tokenizer_classes` has the steps of those that lmjax follows.
"""

BACKEND = "TokenizersBackend"  # the class that uses tokenizer.json as it is

# The class of each model_type that transformers knows; one that is missing here has no class of its own.
_MODELS = {
    BACKEND: (
        "aria beam bigbird_pegasus canary cohere_asr ernie4_5 ernie4_5_moe EvollaModel flex_olmo fuyu glm glm4 "
        "glm4_moe glm4_moe_lite glm4v glm4v_moe glm_image glmasr got_ocr2 gpt_bigcode gradium_phonon_tts granite "
        "granitemoe granitemoehybrid granitemoeshared hyperclovax internlm3 iquestcoder jamba kimi_k25 kimi_linear "
        "kosmos-2 llava llava_next mimo_v2_flash minicpm3 minicpm_ocr minicpmv4_6 minicpmv4_7 minimax_m2 ministral "
        "ministral3 mistral mistral3 mistral_large4 mixtral modernbert modernbert-decoder molmo2 nemo_speechlm "
        "nemotron nystromformer olmo2 olmo3 olmo_hybrid omniasr paddleocr_vl pegasus_x persimmon phi3 phimoe "
        "pix2struct pixtral pocket_tts smolvlm stablelm umt5 vipllava voxtral voxtral_realtime xlm-roberta-xl"
    ),
    "Qwen2Tokenizer": (
        "audioflamingo3 colqwen2 cosmos3_omni dots3_note fun_asr_nano hunyuan_vl internvl lighton_ocr "
        "moss_transcribe_diarize ovis2 qianfan_ocr qwen2 qwen2_5_omni qwen2_5_vl qwen2_audio qwen2_moe qwen2_vl "
        "qwen3 qwen3_asr qwen3_moe qwen3_next qwen3_omni_moe qwen3_vl qwen3_vl_moe vibevoice"
    ),
    "BertTokenizer": (
        "align bark bert blip bros chinese_clip convbert distilbert electra ernie flava git grounding-dino layoutlm "
        "megatron-bert mm-grounding-dino nomic_bert squeezebert tvp vilt visual_bert"
    ),
    "GPT2Tokenizer": (
        "blip-2 codegen dbrx emu3 gpt2 gpt_neo gptj hyperclovax_vision_v2 instructblip instructblipvideo jais2 opt "
        "phi starcoder2"
    ),
    "CLIPTokenizer": "aimv2 clip clipseg groupvit omdet-turbo oneformer owlv2 owlvit sam3 sam3_video xclip",
    "GemmaTokenizer": (
        "diffusion_gemma gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma shieldgemma2 t5gemma zaya"
    ),
    "RobertaTokenizer": "bart bridgetower clap data2vec-text ibert lilt longformer mra roberta roberta-prelayernorm",
    "GPTNeoXTokenizer": "falcon_mamba gpt_neox mamba mamba2 mpt olmo olmoe rwkv xlstm",
    "ParakeetTokenizer": (
        "granite_speech5_ctc nemotron3_5_asr nemotron_asr_streaming omniasr_ctc parakeet_ctc parakeet_rnnt parakeet_tdt"
    ),
    "Wav2Vec2CTCTokenizer": "data2vec-audio hubert unispeech unispeech-sat wav2vec2 wav2vec2-bert wav2vec2-conformer",
    "XLMRobertaTokenizer": "gte jina_embeddings_v3 metaclip_2 trocr xlm-roberta xmod",
    "Qwen3_5Tokenizer": "qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen4_exp",
    "T5Tokenizer": "mt5 musicgen musicgen_melody switch_transformers t5",
    "CohereTokenizer": "aya_vision cohere cohere2",
    "AlbertTokenizer": "albert yoso",
    "EsmcTokenizer": "esmc esmfold2",
    "LasrTokenizer": "lasr_ctc lasr_encoder",
    "LlamaTokenizer": "idefics idefics2",
    "NougatTokenizer": "nougat pp_formulanet",
    "SeamlessM4TTokenizer": "seamless_m4t seamless_m4t_v2",
}
# Classes of a single model_type, as MODEL_TYPE:CLASS.
_PAIRS = (
    "bert-generation:BertGenerationTokenizer big_bird:BigBirdTokenizer biogpt:BioGptTokenizer "
    "blenderbot:BlenderbotTokenizer blenderbot-small:BlenderbotSmallTokenizer camembert:CamembertTokenizer "
    "canine:CanineTokenizer clvp:ClvpTokenizer cpmant:CpmAntTokenizer ctrl:CTRLTokenizer "
    "deberta:DebertaTokenizer deberta-v2:DebertaV2Tokenizer dia:DiaTokenizer dpr:DPRQuestionEncoderTokenizer "
    "esm:EsmTokenizer fastspeech2_conformer:FastSpeech2ConformerTokenizer flaubert:FlaubertTokenizer "
    "florence2:BartTokenizer fnet:FNetTokenizer fsmt:FSMTTokenizer funnel:FunnelTokenizer "
    "gpt-sw3:GPTSw3Tokenizer gpt_neox_japanese:GPTNeoXJapaneseTokenizer layoutlmv2:LayoutLMv2Tokenizer "
    "layoutlmv3:LayoutLMv3Tokenizer layoutxlm:LayoutXLMTokenizer led:LEDTokenizer luke:LukeTokenizer "
    "lxmert:LxmertTokenizer m2m_100:M2M100Tokenizer marian:MarianTokenizer markuplm:MarkupLMTokenizer "
    "mbart:MBartTokenizer mgp-str:MgpstrTokenizer mobilebert:MobileBertTokenizer mpnet:MPNetTokenizer "
    "mvp:MvpTokenizer nllb-moe:NllbTokenizer openai-gpt:OpenAIGPTTokenizer pegasus:PegasusTokenizer "
    "perceiver:PerceiverTokenizer plbart:PLBartTokenizer prophetnet:ProphetNetTokenizer rag:RagTokenizer "
    "reformer:ReformerTokenizer rembert:RemBertTokenizer roc_bert:RoCBertTokenizer roformer:RoFormerTokenizer "
    "siglip:SiglipTokenizer siglip2:Siglip2Tokenizer speech_to_text:Speech2TextTokenizer "
    "speecht5:SpeechT5Tokenizer splinter:SplinterTokenizer tapas:TapasTokenizer tipsv2:Tipsv2Tokenizer "
    "udop:UdopTokenizer videoprism:VideoPrismTokenizer vits:VitsTokenizer whisper:WhisperTokenizer "
    "xglm:XGLMTokenizer xlm:XLMTokenizer xlnet:XLNetTokenizer"
)
REGISTERED: dict[str, str] = {model: name for name, models in _MODELS.items() for model in models.split()}
REGISTERED |= {model: name for model, _, name in (pair.partition(":") for pair in _PAIRS.split())}

#: model_types whose own class counts, whatever class a file names.
OVERRIDES = frozenset(
    ["hyperclovax_vision_v2", "qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen4_exp", "siglip2"]
)

#: Other names of classes.
ALIASES = {
    "LxmertTokenizer": "BertTokenizer",
    "MobileBertTokenizer": "BertTokenizer",
    "SqueezeBertTokenizer": "BertTokenizer",
}

_OTHERS = (
    "AlbertTokenizer BartTokenizer BarthezTokenizer BartphoTokenizer BertGenerationTokenizer "
    "BertJapaneseTokenizer BertTokenizerLegacy BertweetTokenizer BigBirdTokenizer BioGptTokenizer "
    "BlenderbotSmallTokenizer BlenderbotTokenizer ByT5Tokenizer CLIPTokenizer CTRLTokenizer "
    "CamembertTokenizer CanineTokenizer ClvpTokenizer CpmAntTokenizer CpmTokenizer DPRContextEncoderTokenizer "
    "DPRQuestionEncoderTokenizer DPRReaderTokenizer DebertaTokenizer DebertaV2Tokenizer DiaTokenizer "
    "EsmTokenizer EsmcTokenizer FSMTTokenizer FastSpeech2ConformerTokenizer FlaubertTokenizer FunnelTokenizer "
    "GPTNeoXJapaneseTokenizer GPTSw3Tokenizer HerbertTokenizer LEDTokenizer LasrTokenizer LayoutLMv2Tokenizer "
    "LayoutLMv3Tokenizer LayoutXLMTokenizer LukeTokenizer M2M100Tokenizer MBart50Tokenizer MBartTokenizer "
    "MLukeTokenizer MPNetTokenizer MarianTokenizer MarkupLMTokenizer MgpstrTokenizer MvpTokenizer "
    "MyT5Tokenizer NllbTokenizer NougatTokenizer OpenAIGPTTokenizer PLBartTokenizer PegasusTokenizer "
    "PerceiverTokenizer PhobertTokenizer Pop2PianoTokenizer ProphetNetTokenizer RagTokenizer "
    "ReformerTokenizer RemBertTokenizer RoCBertTokenizer RoFormerTokenizer RobertaTokenizer "
    "SeamlessM4TTokenizer Siglip2Tokenizer SiglipTokenizer Speech2TextTokenizer SpeechT5Tokenizer "
    "SplinterTokenizer T5Tokenizer TapasTokenizer Tipsv2Tokenizer UdopTokenizer VideoPrismTokenizer "
    "VitsTokenizer Wav2Vec2CTCTokenizer Wav2Vec2PhonemeCTCTokenizer WhisperTokenizer XGLMTokenizer "
    "XLMRobertaTokenizer XLMTokenizer XLNetTokenizer"
)
#: Classes that build their steps themselves, or read other files than tokenizer.json, and that lmjax does not follow.
NOT_FOLLOWED = frozenset(_OTHERS.split())
