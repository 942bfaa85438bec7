//! The cases, in the order in which they run. Each begins with no container; whatever it leaves behind fails it.
//!
//! Called by the test program in `../mod.rs`, which picks them by name. Nothing of the host may take part in a case.

mod confinement;
mod lifecycle;
mod processes;
mod streams;

use super::guest::Guest;
use std::future::Future;
use std::pin::Pin;

type Case = (&'static str, fn(Guest) -> Pin<Box<dyn Future<Output = ()>>>);

macro_rules! cases {
    ($($module:ident::$name:ident),* $(,)?) => {
        /// All cases, in order.
        pub fn all() -> Vec<Case> {
            vec![$((stringify!($name), |guest| Box::pin($module::$name(guest)))),*]
        }
    };
}

cases![
    processes::command_runs_and_its_output_and_exit_arrive,
    confinement::container_sees_itself_alone,
    confinement::user_of_the_image_owns_its_process_and_streams,
    processes::commands_that_cannot_be_executed_are_named,
    confinement::seccomp_holds_for_first_process_and_execs,
    confinement::restrictions_hold_for_first_process_and_execs,
    processes::exec_runs_in_the_container,
    processes::exec_does_not_follow_the_first_process_into_its_own_mounts,
    processes::killing_an_exec_tree_spares_the_container,
    processes::what_an_exec_leaves_in_the_background_lives_until_the_container_ends,
    processes::execs_follow_their_container_into_a_nested_group,
    processes::signals_reach_processes,
    confinement::limits_hold_and_change_all_or_none,
    confinement::limits_hold_against_root_in_a_user_namespace,
    confinement::out_of_memory_is_told,
    processes::pod_pid_namespace_is_shared_and_collects_orphans,
    processes::target_pid_namespace_is_joined,
    streams::terminals_have_a_size_and_take_input,
    streams::stdin_reaches_the_process,
    streams::much_output_is_not_lost,
    lifecycle::failed_creations_leave_nothing,
    lifecycle::removal_ends_whatever_state,
    lifecycle::calls_on_one_container_at_a_time_are_safe,
    lifecycle::watchers_see_a_snapshot_and_every_change,
    lifecycle::times,
];
