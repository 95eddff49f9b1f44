"""
The methods of the contract as values, so that a caller names what it calls once and typed.

Add a row with each RPC. Not here: who serves them.
"""

from __future__ import annotations

from patchbay.host.v1 import auth_pb2, http_pb2, log_pb2, model_pb2
from patchbay.plugin.v1 import (
    auth_provider_pb2,
    command_line_plugin_pb2,
    executor_pb2,
    frontend_auth_provider_pb2,
    identifier_pb2,
    management_api_pb2,
    model_provider_pb2,
    model_registrar_pb2,
    model_router_pb2,
    plugin_pb2,
    request_interceptor_pb2,
    request_lifecycle_pb2,
    response_interceptor_pb2,
    scheduler_plugin_pb2,
    stream_chunk_interceptor_pb2,
    thinking_applier_pb2,
    transform_pb2,
    usage_plugin_pb2,
)
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay.usage.v1 import usage_pb2
from patchbay_gateway.kernel.channels.port import Method

_PLUGIN = "/patchbay.plugin.v1.PluginService/"
CHALLENGE = Method(_PLUGIN + "Challenge", plugin_pb2.ChallengeRequest, plugin_pb2.ChallengeResponse)
REGISTER = Method(_PLUGIN + "Register", plugin_pb2.RegisterRequest, plugin_pb2.RegisterResponse)
RECONFIGURE = Method(
    _PLUGIN + "Reconfigure", plugin_pb2.ReconfigureRequest, plugin_pb2.RegisterResponse
)
NOTIFY_REGISTRATION = Method(
    _PLUGIN + "NotifyRegistration",
    plugin_pb2.NotifyRegistrationRequest,
    plugin_pb2.NotifyRegistrationResponse,
)

_EXECUTOR = "/patchbay.plugin.v1.ExecutorService/"
IDENTIFIER = Method(
    _EXECUTOR + "Identifier", identifier_pb2.IdentifierRequest, identifier_pb2.IdentifierResponse
)
EXECUTE = Method(_EXECUTOR + "Execute", executor_pb2.ExecutorRequest, executor_pb2.ExecutorResponse)
EXECUTE_STREAM = Method(
    _EXECUTOR + "ExecuteStream", executor_pb2.ExecutorRequest, executor_pb2.ExecutorStreamResponse
)
COUNT_TOKENS = Method(
    _EXECUTOR + "CountTokens", executor_pb2.ExecutorRequest, executor_pb2.ExecutorResponse
)
HTTP_REQUEST = Method(
    _EXECUTOR + "HttpRequest", executor_pb2.ExecutorHTTPRequest, executor_pb2.ExecutorHTTPResponse
)

_AUTH_PROVIDER = "/patchbay.plugin.v1.AuthProviderService/"
AUTH_IDENTIFIER = Method(
    _AUTH_PROVIDER + "Identifier",
    identifier_pb2.IdentifierRequest,
    identifier_pb2.IdentifierResponse,
)
PARSE_AUTH = Method(
    _AUTH_PROVIDER + "ParseAuth",
    auth_provider_pb2.AuthParseRequest,
    auth_provider_pb2.AuthParseResponse,
)
START_LOGIN = Method(
    _AUTH_PROVIDER + "StartLogin",
    auth_provider_pb2.AuthLoginStartRequest,
    auth_provider_pb2.AuthLoginStartResponse,
)
POLL_LOGIN = Method(
    _AUTH_PROVIDER + "PollLogin",
    auth_provider_pb2.AuthLoginPollRequest,
    auth_provider_pb2.AuthLoginPollResponse,
)
REFRESH_AUTH = Method(
    _AUTH_PROVIDER + "RefreshAuth",
    auth_provider_pb2.AuthRefreshRequest,
    auth_provider_pb2.AuthRefreshResponse,
)

_MODEL_REGISTRAR = "/patchbay.plugin.v1.ModelRegistrarService/"
REGISTER_MODELS = Method(
    _MODEL_REGISTRAR + "RegisterModels",
    model_registrar_pb2.ModelRegistrationRequest,
    model_registrar_pb2.ModelRegistrationResponse,
)

_MODEL_PROVIDER = "/patchbay.plugin.v1.ModelProviderService/"
STATIC_MODELS = Method(
    _MODEL_PROVIDER + "StaticModels",
    model_provider_pb2.StaticModelRequest,
    model_provider_pb2.ModelResponse,
)
MODELS_FOR_AUTH = Method(
    _MODEL_PROVIDER + "ModelsForAuth",
    model_provider_pb2.AuthModelRequest,
    model_provider_pb2.ModelResponse,
)

_FRONTEND_AUTH = "/patchbay.plugin.v1.FrontendAuthProviderService/"
FRONTEND_AUTH_IDENTIFIER = Method(
    _FRONTEND_AUTH + "Identifier",
    identifier_pb2.IdentifierRequest,
    identifier_pb2.IdentifierResponse,
)
AUTHENTICATE = Method(
    _FRONTEND_AUTH + "Authenticate",
    frontend_auth_provider_pb2.FrontendAuthRequest,
    frontend_auth_provider_pb2.FrontendAuthResponse,
)

_SCHEDULER_PLUGIN = "/patchbay.plugin.v1.SchedulerPluginService/"
PICK = Method(
    _SCHEDULER_PLUGIN + "Pick",
    scheduler_plugin_pb2.SchedulerPickRequest,
    scheduler_plugin_pb2.SchedulerPickResponse,
)

_MODEL_ROUTER = "/patchbay.plugin.v1.ModelRouterService/"
ROUTE_MODEL = Method(
    _MODEL_ROUTER + "RouteModel",
    model_router_pb2.ModelRouteRequest,
    model_router_pb2.ModelRouteResponse,
)

_REQUEST_TRANSLATOR = "/patchbay.plugin.v1.RequestTranslatorService/"
TRANSLATE_REQUEST = Method(
    _REQUEST_TRANSLATOR + "TranslateRequest",
    transform_pb2.RequestTransformRequest,
    transform_pb2.PayloadResponse,
)

_REQUEST_NORMALIZER = "/patchbay.plugin.v1.RequestNormalizerService/"
NORMALIZE_REQUEST = Method(
    _REQUEST_NORMALIZER + "NormalizeRequest",
    transform_pb2.RequestTransformRequest,
    transform_pb2.PayloadResponse,
)

_RESPONSE_TRANSLATOR = "/patchbay.plugin.v1.ResponseTranslatorService/"
TRANSLATE_RESPONSE = Method(
    _RESPONSE_TRANSLATOR + "TranslateResponse",
    transform_pb2.ResponseTransformRequest,
    transform_pb2.PayloadResponse,
)
TRANSLATE_RESPONSE_STREAM = Method(
    _RESPONSE_TRANSLATOR + "TranslateResponseStream",
    transform_pb2.ResponseTransformRequest,
    transform_pb2.PayloadResponse,
)

_RESPONSE_BEFORE = "/patchbay.plugin.v1.ResponseBeforeTranslatorService/"
NORMALIZE_RESPONSE_BEFORE = Method(
    _RESPONSE_BEFORE + "NormalizeResponse",
    transform_pb2.ResponseTransformRequest,
    transform_pb2.PayloadResponse,
)
NORMALIZE_RESPONSE_BEFORE_STREAM = Method(
    _RESPONSE_BEFORE + "NormalizeResponseStream",
    transform_pb2.ResponseTransformRequest,
    transform_pb2.PayloadResponse,
)

_RESPONSE_AFTER = "/patchbay.plugin.v1.ResponseAfterTranslatorService/"
NORMALIZE_RESPONSE_AFTER = Method(
    _RESPONSE_AFTER + "NormalizeResponse",
    transform_pb2.ResponseTransformRequest,
    transform_pb2.PayloadResponse,
)
NORMALIZE_RESPONSE_AFTER_STREAM = Method(
    _RESPONSE_AFTER + "NormalizeResponseStream",
    transform_pb2.ResponseTransformRequest,
    transform_pb2.PayloadResponse,
)

_REQUEST_INTERCEPTOR = "/patchbay.plugin.v1.RequestInterceptorService/"
INTERCEPT_REQUEST_BEFORE_AUTH = Method(
    _REQUEST_INTERCEPTOR + "InterceptRequestBeforeAuth",
    request_interceptor_pb2.RequestInterceptRequest,
    request_interceptor_pb2.RequestInterceptResponse,
)
INTERCEPT_REQUEST_AFTER_AUTH = Method(
    _REQUEST_INTERCEPTOR + "InterceptRequestAfterAuth",
    request_interceptor_pb2.RequestInterceptRequest,
    request_interceptor_pb2.RequestInterceptResponse,
)

_RESPONSE_INTERCEPTOR = "/patchbay.plugin.v1.ResponseInterceptorService/"
INTERCEPT_RESPONSE = Method(
    _RESPONSE_INTERCEPTOR + "InterceptResponse",
    response_interceptor_pb2.ResponseInterceptRequest,
    response_interceptor_pb2.ResponseInterceptResponse,
)

_STREAM_CHUNK_INTERCEPTOR = "/patchbay.plugin.v1.StreamChunkInterceptorService/"
INTERCEPT_STREAM_CHUNK = Method(
    _STREAM_CHUNK_INTERCEPTOR + "InterceptStreamChunk",
    stream_chunk_interceptor_pb2.StreamChunkInterceptRequest,
    stream_chunk_interceptor_pb2.StreamChunkInterceptResponse,
)

_REQUEST_LIFECYCLE = "/patchbay.plugin.v1.RequestLifecycleService/"
HANDLE_REQUEST_COMPLETE = Method(
    _REQUEST_LIFECYCLE + "HandleRequestComplete",
    request_lifecycle_pb2.RequestCompletion,
    request_lifecycle_pb2.RequestCompletionResponse,
)

_THINKING_APPLIER = "/patchbay.plugin.v1.ThinkingApplierService/"
THINKING_IDENTIFIER = Method(
    _THINKING_APPLIER + "Identifier",
    identifier_pb2.IdentifierRequest,
    identifier_pb2.IdentifierResponse,
)
APPLY_THINKING = Method(
    _THINKING_APPLIER + "ApplyThinking",
    thinking_applier_pb2.ThinkingApplyRequest,
    transform_pb2.PayloadResponse,
)

_USAGE_PLUGIN = "/patchbay.plugin.v1.UsagePluginService/"
HANDLE_USAGE = Method(
    _USAGE_PLUGIN + "HandleUsage",
    usage_plugin_pb2.UsageRecord,
    usage_plugin_pb2.UsageRecordResponse,
)

_COMMAND_LINE = "/patchbay.plugin.v1.CommandLinePluginService/"
REGISTER_COMMAND_LINE = Method(
    _COMMAND_LINE + "RegisterCommandLine",
    command_line_plugin_pb2.CommandLineRegistrationRequest,
    command_line_plugin_pb2.CommandLineRegistrationResponse,
)
EXECUTE_COMMAND_LINE = Method(
    _COMMAND_LINE + "ExecuteCommandLine",
    command_line_plugin_pb2.CommandLineExecutionRequest,
    command_line_plugin_pb2.CommandLineExecutionResponse,
)

_MANAGEMENT_API = "/patchbay.plugin.v1.ManagementAPIService/"
REGISTER_MANAGEMENT = Method(
    _MANAGEMENT_API + "RegisterManagement",
    management_api_pb2.ManagementRegistrationRequest,
    management_api_pb2.ManagementRegistrationResponse,
)
HANDLE_MANAGEMENT = Method(
    _MANAGEMENT_API + "HandleManagement",
    management_api_pb2.ManagementRequest,
    management_api_pb2.ManagementResponse,
)

_HOST = "/patchbay.host.v1.HostService/"
HTTP_DO = Method(_HOST + "HttpDo", http_pb2.HTTPRequest, http_pb2.HTTPResponse)
HTTP_DO_STREAM = Method(_HOST + "HttpDoStream", http_pb2.HTTPRequest, http_pb2.HTTPStreamResponse)
EXECUTE_MODEL = Method(
    _HOST + "ExecuteModel",
    model_pb2.HostModelExecutionRequest,
    model_pb2.HostModelExecutionResponse,
)
EXECUTE_MODEL_STREAM = Method(
    _HOST + "ExecuteModelStream",
    model_pb2.HostModelExecutionRequest,
    model_pb2.HostModelStreamResponse,
)
LIST_AUTHS = Method(
    _HOST + "ListAuths", auth_pb2.HostAuthListRequest, auth_pb2.HostAuthListResponse
)
GET_AUTH = Method(_HOST + "GetAuth", auth_pb2.HostAuthGetRequest, auth_pb2.HostAuthGetResponse)
GET_AUTH_RUNTIME = Method(
    _HOST + "GetAuthRuntime", auth_pb2.HostAuthGetRequest, auth_pb2.HostAuthGetRuntimeResponse
)
SAVE_AUTH = Method(_HOST + "SaveAuth", auth_pb2.HostAuthSaveRequest, auth_pb2.HostAuthSaveResponse)
LOG = Method(_HOST + "Log", log_pb2.HostLogRequest, log_pb2.HostLogResponse)

_SCHEDULER = "/patchbay.scheduler.v1.SchedulerService/"
ACQUIRE = Method(
    _SCHEDULER + "Acquire", scheduler_pb2.AcquireRequest, scheduler_pb2.AcquireResponse
)
RENEW = Method(_SCHEDULER + "Renew", scheduler_pb2.RenewRequest, scheduler_pb2.RenewResponse)
REPORT = Method(_SCHEDULER + "Report", scheduler_pb2.ReportRequest, scheduler_pb2.ReportResponse)
LIST_MODELS = Method(
    _SCHEDULER + "ListModels", scheduler_pb2.ListModelsRequest, scheduler_pb2.ListModelsResponse
)
LIST_CHANNEL_KEYS = Method(
    _SCHEDULER + "ListChannelKeys",
    scheduler_pb2.ListChannelKeysRequest,
    scheduler_pb2.ListChannelKeysResponse,
)
REFRESH_CREDENTIAL = Method(
    _SCHEDULER + "RefreshCredential",
    scheduler_pb2.RefreshCredentialRequest,
    scheduler_pb2.RefreshCredentialResponse,
)
START_LOGIN_FLOW = Method(
    _SCHEDULER + "StartLogin", scheduler_pb2.StartLoginRequest, scheduler_pb2.StartLoginResponse
)
COMPLETE_LOGIN = Method(
    _SCHEDULER + "CompleteLogin",
    scheduler_pb2.CompleteLoginRequest,
    scheduler_pb2.CompleteLoginResponse,
)
POLL_LOGIN_FLOW = Method(
    _SCHEDULER + "PollLogin", scheduler_pb2.PollLoginRequest, scheduler_pb2.PollLoginResponse
)
LIST_CREDENTIALS = Method(
    _SCHEDULER + "ListCredentials",
    scheduler_pb2.ListCredentialsRequest,
    scheduler_pb2.ListCredentialsResponse,
)
KEEP_AUTHS = Method(
    _SCHEDULER + "KeepAuths",
    scheduler_pb2.KeepAuthsRequest,
    scheduler_pb2.KeepAuthsResponse,
)
REMOVE_CREDENTIAL = Method(
    _SCHEDULER + "RemoveCredential",
    scheduler_pb2.RemoveCredentialRequest,
    scheduler_pb2.RemoveCredentialResponse,
)
RESET_CREDENTIAL = Method(
    _SCHEDULER + "ResetCredential",
    scheduler_pb2.ResetCredentialRequest,
    scheduler_pb2.CredentialStatus,
)
SET_CREDENTIAL_DISABLED = Method(
    _SCHEDULER + "SetCredentialDisabled",
    scheduler_pb2.SetCredentialDisabledRequest,
    scheduler_pb2.CredentialStatus,
)

_USAGE = "/patchbay.usage.v1.UsageService/"
QUERY = Method(_USAGE + "Query", usage_pb2.QueryRequest, usage_pb2.QueryResponse)
GET_PROGRESS = Method(
    _USAGE + "GetProgress", usage_pb2.GetProgressRequest, usage_pb2.GetProgressResponse
)
