//! What the list of devices in `mod.rs` becomes: `devices!` writes everything that has to name each device,
//! so that nothing else does.
//!
//! A line is `name: Kind,` or `name: Kind = backend,`, where `Kind` is a [`super::placing::ListEntry`] and
//! `backend` a field of `Backends`. Lines keep their order everywhere: the first has the first place on the
//! bus, and saved states hold them so.

/// Writes `Devices`, `DevicesState` and what is done to all devices.
macro_rules! devices {
    ($($(#[$doc:meta])* $name:ident: $kind:ty $(= $backend:ident)?,)+) => {
        /// The devices of a machine, each in its place on the bus.
        pub struct Devices {
            $($(#[$doc])* pub $name: <$kind as ListEntry>::Placed,)+
        }

        /// All that is saved of the devices.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub struct DevicesState {
            $($name: <$kind as ListEntry>::Saved,)+
        }

        impl Devices {
            /// The devices' names, in the order of their places.
            pub const NAMES: &[&str] = &[$(stringify!($name)),+];

            /// Makes all devices and the bus that they are on, as they were `saved` where that is given.
            ///
            /// # Errors
            /// When a device does not take its backend or its saved state, or the host refuses what it needs.
            pub fn place(
                machinery: &mut Machinery<'_>,
                backends: Backends,
                saved: Option<&DevicesState>,
            ) -> Result<(Bus, Self), DevicesError> {
                let mut bus = Bus::new();
                let mut slots = DeviceSlot::all();
                let mut next = || slots.next().expect("the list was counted below");
                let devices = Self {
                    $($name: <$kind>::place(
                        machinery,
                        Place { bus: &mut bus, slot: next() },
                        ($(backends.$backend)?),
                        saved.map(|saved| &saved.$name),
                    )?,)+
                };
                Ok((bus, devices))
            }

            /// The places that have a device, for the guest's tables.
            pub fn slots(&self) -> Vec<DeviceSlot> {
                occupied(&[$(<$kind>::is_there(&self.$name)),+])
            }

            /// All that is to be saved. The processors must be stopped.
            pub fn save(&self) -> DevicesState {
                DevicesState { $($name: <$kind as ListEntry>::save(&self.$name),)+ }
            }

            /// Lets all devices go on that were built from what was saved. The interrupt controllers must
            /// have their state.
            pub fn resume(&self) {
                $(<$kind>::resume(&self.$name);)+
            }
        }

        const _: () = assert!(Devices::NAMES.len() <= DeviceSlot::COUNT, "more devices than there are places");

        #[cfg(any(test, feature = "testing"))]
        impl DevicesState {
            /// As devices are that no driver has found.
            pub fn example() -> Self {
                Self { $($name: <$kind>::example(),)+ }
            }
        }
    };
}
