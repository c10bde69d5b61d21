package org.tornadomoe.cli;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * One number compared with its limit.
 *
 * @param stage the layer's stage
 * @param measure the kind of number
 * @param limit its maximum; infinite if it only has to be finite
 */
record Check(String stage, String measure, double value, double limit) {
    /** False also for NaN. */
    boolean ok() {
        return Double.isFinite(value) && value <= limit;
    }

    static boolean allOk(List<Check> checks) {
        return checks.stream().allMatch(Check::ok);
    }

    Map<String, Object> toJson() {
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("stage", stage);
        json.put("measure", measure);
        json.put("value", value);
        json.put("limit", limit);
        json.put("ok", ok());
        return json;
    }

    static String table(List<Check> checks) {
        List<List<String>> rows = new ArrayList<>();
        rows.add(List.of("stage", "measure", "value", "limit", ""));
        String stage = "";
        for (Check check : checks) {
            rows.add(List.of(
                    check.stage.equals(stage) ? "" : check.stage,
                    check.measure,
                    Output.number(check.value),
                    Double.isInfinite(check.limit) ? "" : Output.number(check.limit),
                    check.ok() ? "ok" : "NOT OK"));
            stage = check.stage;
        }
        return Output.table(rows);
    }
}
