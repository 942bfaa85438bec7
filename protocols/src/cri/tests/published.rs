//! All messages of the CRI and their fields, by number and type, as published in k8s.io/cri-api v0.37.0
//! (pkg/apis/runtime/v1/api.proto). Independent of the proto files of this crate, which it checks. Message
//! names are in the spelling that prost gives them; `map` maps strings to strings, `enum` is any enumeration.

use super::Message;

/// Names messages with their fields, and finds their types.
macro_rules! published {
    (known { $($known:ident $known_fields:literal,)* } new { $($new:ident $new_fields:literal,)* }) => {
        /// All messages that are published.
        pub fn messages() -> Vec<Message> {
            use crate::cri;
            use k8s_cri::v1;
            vec![
                $(Message::known::<cri::$known, v1::$known>(stringify!($known), $known_fields),)*
                $(Message::new::<cri::$new>(stringify!($new), $new_fields),)*
            ]
        }
    };
}

published! {
    // k8s-cri has these, whole or in part.
    known {
        Mount "1 string, 2 string, 3 bool, 4 bool, 5 enum, 6 repeated IdMapping, 7 repeated IdMapping, \
            8 bool, 9 ImageSpec, 10 string, 11 repeated string",
        PodSandboxStatusResponse "1 PodSandboxStatus, 2 map, 3 repeated ContainerStatus, 4 int64",
        PodSandboxStatsResponse "1 PodSandboxStats",
        ListPodSandboxStatsResponse "1 repeated PodSandboxStats",
        PodSandboxStats "1 PodSandboxAttributes, 2 LinuxPodSandboxStats, 3 WindowsPodSandboxStats",
        LinuxPodSandboxStats "1 CpuUsage, 2 MemoryUsage, 3 NetworkUsage, 4 ProcessUsage, \
            5 repeated ContainerStats, 6 IoUsage",
        ImageSpec "1 string, 2 map, 18 string, 19 string, 20 string",
        KeyValue "1 string, 2 bytes",
        ContainerConfig "1 ContainerMetadata, 2 ImageSpec, 3 repeated string, 4 repeated string, 5 string, \
            6 repeated KeyValue, 7 repeated Mount, 8 repeated Device, 9 map, 10 map, 11 string, 12 bool, \
            13 bool, 14 bool, 15 LinuxContainerConfig, 16 WindowsContainerConfig, 17 repeated CdiDevice, \
            18 enum",
        CreateContainerRequest "1 string, 2 ContainerConfig, 3 PodSandboxConfig",
        Container "1 string, 2 string, 3 ContainerMetadata, 4 ImageSpec, 5 string, 6 enum, 7 int64, 8 map, \
            9 map, 10 string",
        ListContainersResponse "1 repeated Container",
        ContainerStatus "1 string, 2 ContainerMetadata, 3 enum, 4 int64, 5 int64, 6 int64, 7 int32, \
            8 ImageSpec, 9 string, 10 string, 11 string, 12 map, 13 map, 14 repeated Mount, 15 string, \
            16 ContainerResources, 17 string, 18 ContainerUser, 19 enum",
        ContainerStatusResponse "1 ContainerStatus, 2 map",
        ImageFilter "1 ImageSpec",
        ListImagesRequest "1 ImageFilter",
        Image "1 string, 2 repeated string, 3 repeated string, 4 uint64, 5 Int64Value, 6 string, \
            7 ImageSpec, 8 bool",
        ListImagesResponse "1 repeated Image",
        ImageStatusRequest "1 ImageSpec, 2 bool",
        ImageStatusResponse "1 Image, 2 map",
        PullImageRequest "1 ImageSpec, 2 AuthConfig, 3 PodSandboxConfig",
        RemoveImageRequest "1 ImageSpec",
        RuntimeFeatures "1 bool, 2 bool, 3 bool",
        StatusResponse "1 RuntimeStatus, 2 map, 3 repeated RuntimeHandler, 4 RuntimeFeatures",
        ContainerStatsResponse "1 ContainerStats",
        ListContainerStatsResponse "1 repeated ContainerStats",
        ContainerStats "1 ContainerAttributes, 2 CpuUsage, 3 MemoryUsage, 4 FilesystemUsage, 5 SwapUsage, \
            6 IoUsage",
        CpuUsage "1 int64, 2 UInt64Value, 3 UInt64Value, 4 PsiStats",
        MemoryUsage "1 int64, 2 UInt64Value, 3 UInt64Value, 4 UInt64Value, 5 UInt64Value, 6 UInt64Value, \
            7 UInt64Value, 8 PsiStats",
        ContainerEventResponse "1 string, 2 enum, 3 int64, 4 PodSandboxStatus, 5 repeated ContainerStatus",
        VersionRequest "1 string",
        VersionResponse "1 string, 2 string, 3 string, 4 string",
        DnsConfig "1 repeated string, 2 repeated string, 3 repeated string",
        PortMapping "1 enum, 2 int32, 3 int32, 4 string",
        IdMapping "1 uint32, 2 uint32, 3 uint32",
        UserNamespace "1 enum, 2 repeated IdMapping, 3 repeated IdMapping",
        NamespaceOption "1 enum, 2 enum, 3 enum, 4 string, 5 UserNamespace",
        Int64Value "1 int64",
        LinuxSandboxSecurityContext "1 NamespaceOption, 2 SeLinuxOption, 3 Int64Value, 4 bool, \
            5 repeated int64, 6 bool, 7 string, 8 Int64Value, 9 SecurityProfile, 10 SecurityProfile, \
            11 enum",
        SecurityProfile "1 enum, 2 string",
        LinuxPodSandboxConfig "1 string, 2 LinuxSandboxSecurityContext, 3 map, 4 LinuxContainerResources, \
            5 LinuxContainerResources",
        PodSandboxMetadata "1 string, 2 string, 3 string, 4 uint32",
        PodSandboxConfig "1 PodSandboxMetadata, 2 string, 3 string, 4 DnsConfig, 5 repeated PortMapping, \
            6 map, 7 map, 8 LinuxPodSandboxConfig, 9 WindowsPodSandboxConfig",
        RunPodSandboxRequest "1 PodSandboxConfig, 2 string",
        RunPodSandboxResponse "1 string",
        StopPodSandboxRequest "1 string",
        StopPodSandboxResponse "",
        RemovePodSandboxRequest "1 string",
        RemovePodSandboxResponse "",
        PodSandboxStatusRequest "1 string, 2 bool",
        PodIp "1 string",
        PodSandboxNetworkStatus "1 string, 2 repeated PodIp",
        Namespace "2 NamespaceOption",
        LinuxPodSandboxStatus "1 Namespace",
        PodSandboxStatus "1 string, 2 PodSandboxMetadata, 3 enum, 4 int64, 5 PodSandboxNetworkStatus, \
            6 LinuxPodSandboxStatus, 7 map, 8 map, 9 string",
        PodSandboxStateValue "1 enum",
        PodSandboxFilter "1 string, 2 PodSandboxStateValue, 3 map",
        ListPodSandboxRequest "1 PodSandboxFilter",
        PodSandbox "1 string, 2 PodSandboxMetadata, 3 enum, 4 int64, 5 map, 6 map, 7 string",
        ListPodSandboxResponse "1 repeated PodSandbox",
        PodSandboxStatsRequest "1 string",
        PodSandboxStatsFilter "1 string, 2 map",
        ListPodSandboxStatsRequest "1 PodSandboxStatsFilter",
        PodSandboxAttributes "1 string, 2 PodSandboxMetadata, 3 map, 4 map",
        WindowsPodSandboxStats "1 WindowsCpuUsage, 2 WindowsMemoryUsage, 3 WindowsNetworkUsage, \
            4 WindowsProcessUsage, 5 repeated WindowsContainerStats",
        NetworkUsage "1 int64, 2 NetworkInterfaceUsage, 3 repeated NetworkInterfaceUsage",
        WindowsNetworkUsage "1 int64, 2 WindowsNetworkInterfaceUsage, \
            3 repeated WindowsNetworkInterfaceUsage",
        NetworkInterfaceUsage "1 string, 2 UInt64Value, 3 UInt64Value, 4 UInt64Value, 5 UInt64Value",
        WindowsNetworkInterfaceUsage "1 string, 2 UInt64Value, 3 UInt64Value, 4 UInt64Value, 5 UInt64Value",
        ProcessUsage "1 int64, 2 UInt64Value",
        WindowsProcessUsage "1 int64, 2 UInt64Value",
        LinuxContainerResources "1 int64, 2 int64, 3 int64, 4 int64, 5 int64, 6 string, 7 string, \
            8 repeated HugepageLimit, 9 map, 10 int64",
        HugepageLimit "1 string, 2 uint64",
        SeLinuxOption "1 string, 2 string, 3 string, 4 string",
        Capability "1 repeated string, 2 repeated string, 3 repeated string",
        LinuxContainerSecurityContext "1 Capability, 2 bool, 3 NamespaceOption, 4 SeLinuxOption, \
            5 Int64Value, 6 string, 7 bool, 8 repeated int64, 9 string, 10 string, 11 bool, 12 Int64Value, \
            13 repeated string, 14 repeated string, 15 SecurityProfile, 16 SecurityProfile, 17 enum",
        LinuxContainerConfig "1 LinuxContainerResources, 2 LinuxContainerSecurityContext",
        LinuxContainerUser "1 int64, 2 int64, 3 repeated int64",
        WindowsNamespaceOption "1 enum",
        WindowsSandboxSecurityContext "1 string, 2 string, 3 bool, 4 WindowsNamespaceOption",
        WindowsPodSandboxConfig "1 WindowsSandboxSecurityContext",
        WindowsContainerSecurityContext "1 string, 2 string, 3 bool",
        WindowsContainerConfig "1 WindowsContainerResources, 2 WindowsContainerSecurityContext",
        WindowsContainerResources "1 int64, 2 int64, 3 int64, 4 int64, 5 int64, \
            6 repeated WindowsCpuGroupAffinity",
        WindowsCpuGroupAffinity "1 uint64, 2 uint32",
        ContainerMetadata "1 string, 2 uint32",
        Device "1 string, 2 string, 3 string",
        CdiDevice "1 string",
        CreateContainerResponse "1 string",
        StartContainerRequest "1 string",
        StartContainerResponse "",
        StopContainerRequest "1 string, 2 int64",
        StopContainerResponse "",
        RemoveContainerRequest "1 string",
        RemoveContainerResponse "",
        ContainerStateValue "1 enum",
        ContainerFilter "1 string, 2 ContainerStateValue, 3 string, 4 map",
        ListContainersRequest "1 ContainerFilter",
        ContainerStatusRequest "1 string, 2 bool",
        ContainerResources "1 LinuxContainerResources, 2 WindowsContainerResources",
        ContainerUser "1 LinuxContainerUser",
        UpdateContainerResourcesRequest "1 string, 2 LinuxContainerResources, 3 WindowsContainerResources, \
            4 map",
        UpdateContainerResourcesResponse "",
        ExecSyncRequest "1 string, 2 repeated string, 3 int64",
        ExecSyncResponse "1 bytes, 2 bytes, 3 int32",
        ExecRequest "1 string, 2 repeated string, 3 bool, 4 bool, 5 bool, 6 bool",
        ExecResponse "1 string",
        AttachRequest "1 string, 2 bool, 3 bool, 4 bool, 5 bool",
        AttachResponse "1 string",
        PortForwardRequest "1 string, 2 repeated int32",
        PortForwardResponse "1 string",
        AuthConfig "1 string, 2 string, 3 string, 4 string, 5 string, 6 string",
        PullImageResponse "1 string",
        RemoveImageResponse "",
        NetworkConfig "1 string",
        RuntimeConfig "1 NetworkConfig",
        UpdateRuntimeConfigRequest "1 RuntimeConfig",
        UpdateRuntimeConfigResponse "",
        RuntimeCondition "1 string, 2 bool, 3 string, 4 string",
        RuntimeStatus "1 repeated RuntimeCondition",
        StatusRequest "1 bool",
        RuntimeHandlerFeatures "1 bool, 2 bool",
        RuntimeHandler "1 string, 2 RuntimeHandlerFeatures",
        ImageFsInfoRequest "",
        UInt64Value "1 uint64",
        FilesystemIdentifier "1 string",
        FilesystemUsage "1 int64, 2 FilesystemIdentifier, 3 UInt64Value, 4 UInt64Value",
        WindowsFilesystemUsage "1 int64, 2 FilesystemIdentifier, 3 UInt64Value",
        ImageFsInfoResponse "1 repeated FilesystemUsage, 2 repeated FilesystemUsage",
        ContainerStatsRequest "1 string",
        ListContainerStatsRequest "1 ContainerStatsFilter",
        ContainerStatsFilter "1 string, 2 string, 3 map",
        ContainerAttributes "1 string, 2 ContainerMetadata, 3 map, 4 map",
        WindowsContainerStats "1 ContainerAttributes, 2 WindowsCpuUsage, 3 WindowsMemoryUsage, \
            4 WindowsFilesystemUsage",
        WindowsCpuUsage "1 int64, 2 UInt64Value, 3 UInt64Value",
        SwapUsage "1 int64, 2 UInt64Value, 3 UInt64Value",
        WindowsMemoryUsage "1 int64, 2 UInt64Value, 3 UInt64Value, 4 UInt64Value, 5 UInt64Value",
        ReopenContainerLogRequest "1 string",
        ReopenContainerLogResponse "",
        CheckpointContainerRequest "1 string, 2 string, 3 int64",
        CheckpointContainerResponse "",
        GetEventsRequest "",
        ListMetricDescriptorsRequest "",
        ListMetricDescriptorsResponse "1 repeated MetricDescriptor",
        MetricDescriptor "1 string, 2 string, 3 repeated string",
        ListPodSandboxMetricsRequest "",
        ListPodSandboxMetricsResponse "1 repeated PodSandboxMetrics",
        PodSandboxMetrics "1 string, 2 repeated Metric, 3 repeated ContainerMetrics",
        ContainerMetrics "1 string, 2 repeated Metric",
        Metric "1 string, 2 int64, 3 enum, 4 repeated string, 5 UInt64Value",
        RuntimeConfigRequest "",
        RuntimeConfigResponse "1 LinuxRuntimeConfiguration",
        LinuxRuntimeConfiguration "1 enum",
    }
    // It does not have these.
    new {
        StreamPodSandboxesRequest "1 PodSandboxFilter",
        StreamPodSandboxesResponse "1 repeated PodSandbox",
        StreamPodSandboxStatsRequest "1 PodSandboxStatsFilter",
        StreamPodSandboxStatsResponse "1 repeated PodSandboxStats",
        StreamContainersRequest "1 ContainerFilter",
        StreamContainersResponse "1 repeated Container",
        StreamImagesRequest "1 ImageFilter",
        StreamImagesResponse "1 repeated Image",
        StreamContainerStatsRequest "1 ContainerStatsFilter",
        StreamContainerStatsResponse "1 repeated ContainerStats",
        PsiStats "1 PsiData, 2 PsiData",
        PsiData "1 uint64, 2 double, 3 double, 4 double",
        IoUsage "1 int64, 2 PsiStats",
        CheckpointPodRequest "1 string, 2 string, 3 repeated string, 4 map",
        CheckpointPodResponse "",
        RestorePodRequest "1 string, 2 PodSandboxConfig, 3 string, 4 map, 5 repeated ContainerConfig",
        RestoredContainer "1 string, 2 string",
        RestorePodResponse "1 string, 2 repeated RestoredContainer",
        StreamPodSandboxMetricsRequest "",
        StreamPodSandboxMetricsResponse "1 repeated PodSandboxMetrics",
        UpdatePodSandboxResourcesRequest "1 string, 2 LinuxContainerResources, 3 LinuxContainerResources",
        UpdatePodSandboxResourcesResponse "",
    }
}
