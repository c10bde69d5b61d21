package uk.ac.manchester.tornado.api;

import uk.ac.manchester.tornado.api.interpreter.Plan;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/** One execution of a plan. */
public class TornadoExecutionResult {
    private final Plan plan;
    private final TornadoProfilerResult profile;

    TornadoExecutionResult(Plan plan, TornadoProfilerResult profile) {
        this.plan = plan;
        this.profile = profile;
    }

    public TornadoProfilerResult getProfilerResult() {
        return profile;
    }

    /** Copies what the device holds of these arrays now. */
    public TornadoExecutionResult transferToHost(Object... objects) {
        plan.transferToHost(objects);
        return this;
    }

    /** Copies what the device holds of a part of an array now. */
    public TornadoExecutionResult transferToHost(DataRange dataRange) {
        dataRange.materialize();
        plan.transferToHost(
                dataRange.getArray(),
                dataRange.getOffset() - TornadoNativeArray.ARRAY_HEADER,
                dataRange.getPartialSize());
        return this;
    }

    /** Executions end before they return. */
    public boolean isReady() {
        return true;
    }
}
