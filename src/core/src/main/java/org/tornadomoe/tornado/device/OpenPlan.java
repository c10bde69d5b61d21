package org.tornadomoe.tornado.device;

import java.util.BitSet;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.TornadoExecutionResult;

/**
 * A plan of TornadoVM's that is executed as often as one likes. One thread at a time.
 *
 * <p>TornadoVM (from 5.2 on) keeps what every execution gave, a description of the plan with it, as long as the plan is
 * there. A plan that is derived from another executes the same graphs and keeps its own results, so after the first
 * executions it is such a one that is executed, and replaced from time to time.
 */
public final class OpenPlan {
    /** Results that are kept at most. */
    private static final int KEPT = 64;

    private final TornadoExecutionPlan plan;
    private TornadoExecutionPlan derived;
    private int kept;

    /** Token counts that it has run with. */
    private final BitSet ran = new BitSet();

    public OpenPlan(TornadoExecutionPlan plan) {
        this.plan = plan;
        derived = plan;
    }

    /** The plan itself, to be set up and closed. */
    public TornadoExecutionPlan plan() {
        return plan;
    }

    /**
     * Executes it, and sees after signal handlers where a driver may compile again.
     *
     * @param tokens M of the graph's header
     */
    public TornadoExecutionResult execute(int tokens) {
        if (kept == KEPT) {
            derived = plan.clearProfiles(); // of all derivations the one that changes nothing
            kept = 0;
        }
        kept++;
        if (ran.get(tokens)) {
            return derived.execute();
        }
        try (SignalHandlers.Step _ = SignalHandlers.step()) {
            TornadoExecutionResult result = derived.execute();
            ran.set(tokens);
            return result;
        }
    }
}
