"""
The methods of the contract as values, so that a caller names what it calls once and typed.

Add a row with each RPC. Not here: who serves them.
"""

from __future__ import annotations

from patchbay.plugin.v1 import auth_provider_pb2, executor_pb2, identifier_pb2, plugin_pb2
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
LIST_CREDENTIALS = Method(
    _SCHEDULER + "ListCredentials",
    scheduler_pb2.ListCredentialsRequest,
    scheduler_pb2.ListCredentialsResponse,
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
