//! The rules that keep a rollout safe, each with a switch: a model without one shows what it is good for.

/// One rule, or the part of a rule that can be missing by itself. Numbers are those of the list in ARCHITECTURE.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// 1. A controller acquires its fence first, then replays.
    AcquiresBeforeReading,
    /// 1. Only the newest fence can append.
    OnlyNewestAppends,
    /// 2. Before it acts it reads back every registered router.
    ReadsBackFirst,
    /// 2. An unreachable router blocks activation.
    UnreachableBlocks,
    /// 2. Read-back installs the fence: older ones are refused from then on.
    InstallsFence,
    /// 3. Forward intents come only from logged steps.
    LoggedFirst,
    /// 3. After an append whose outcome is unknown nothing goes forward until the log has been read again.
    DoubtStops,
    /// 3. What is decided again after a doubt rests on a new read-back.
    FreshAfterDoubt,
    /// 4. Older orders are refused.
    RefusesOlder,
    /// 4. An equal order never raises or revives a share.
    EqualRaisesNothing,
    /// 5. Going back sets a mark, whatever its number.
    SetsMark,
    /// 5. A marked router refuses every raise and promotion of that rollout.
    MarkRefuses,
    /// 5. A controller that sees a mark or a latch goes back.
    SeenGoesBack,
    /// 6. From promotion on, going back is logged first.
    BoundIsLoggedFirst,
    /// 6. What has been decided without the log is renewed no more, and told again.
    UnloggedBackHolds,
    /// 7. A router persists its state before it acknowledges.
    Persists,
    /// 7. A router that remembers nothing and started during this rollout sends it back.
    ForgottenGoesBack,
    /// 8. An unreachable router confirms nothing.
    UnreachableUnconfirmed,
    /// 9. A verdict counts only with the current epoch.
    OwnEpoch,
    /// 9. Its window was opened after confirmation.
    WindowAfterConfirmation,
    /// 9. A read-back begun after its arrival shows every router unchanged.
    ReadBackAfterVerdict,
    /// 10. The old baseline is retired only after confirmed promotion.
    BaselineAfterPromotion,
    /// 10. The candidate is retired only after going back is logged and confirmed.
    CandidateAfterBack,
    /// 10. A backend refuses a retirement that is older than its newest load or retirement.
    RetirementsOrdered,
    /// 10. What a later rollout needs is not retired for an earlier one.
    NeededIsNotRetired,
    /// 11. A share that is not renewed lapses.
    Lapses,
    /// 11. A lapsed router refuses renewals.
    LapsedRefusesRenewal,
    /// 11. Resuming is a logged step with a new epoch.
    LapseIsNoticed,
    /// 11. So many lapses go back.
    LapsesBounded,
    /// 12. A lease counts from the router's own clock reading in its last reply.
    OwnReading,
    /// 12. An order for another boot is refused.
    OwnBoot,
    /// 13. `force_baseline` is durable.
    LatchDurable,
    /// 13. A latch refuses raises.
    LatchRefuses,
    /// 13. A latch accepts what does not raise.
    LatchAcceptsBack,
    /// 14. An abort is acknowledged only once it is logged, or accepted by the routers.
    AckAfterAcceptance,
    /// 14. The next rollout starts only from a confirmed end.
    NextFromConfirmedEnd,
    /// 14. A fenced-out controller stops at once.
    FencedStops,
}

/// All rules, or all but one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Rules(Option<Rule>);

impl Rules {
    pub(crate) const fn all() -> Self {
        Self(None)
    }

    pub(crate) const fn without(rule: Rule) -> Self {
        Self(Some(rule))
    }

    pub(crate) fn hold(self, rule: Rule) -> bool {
        self.0 != Some(rule)
    }
}
