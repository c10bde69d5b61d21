package org.tornadomoe.tornado.device;

import java.util.BitSet;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.TornadoExecutionResult;

/**
 * A TornadoVM plan that can be executed without limit. Not thread-safe: one thread at a time.
 *
 * <p>TornadoVM (from 5.2 on) keeps the result of every execution, with a description of the plan, until the plan is
 * closed. A derived plan executes the same graphs and keeps its own results. So after the first executions this class
 * executes a derived plan, and replaces it from time to time.
 */
public final class OpenPlan {
    /** The maximum number of results to keep. */
    private static final int KEPT = 64;

    private final TornadoExecutionPlan plan;
    private TornadoExecutionPlan derived;
    private int kept;

    /** The token counts with which it has run. */
    private final BitSet ran = new BitSet();

    public OpenPlan(TornadoExecutionPlan plan) {
        this.plan = plan;
        derived = plan;
    }

    /** The plan itself, for setting up and closing. */
    public TornadoExecutionPlan plan() {
        return plan;
    }

    /**
     * Executes the plan, and restores signal handlers if a driver may compile again.
     *
     * @param tokens M in the graph's header
     */
    public TornadoExecutionResult execute(int tokens) {
        if (kept == KEPT) {
            derived = plan.clearProfiles(); // the only derivation that changes nothing
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
