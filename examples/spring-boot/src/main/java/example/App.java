package example;

import io.micrometer.core.instrument.MeterRegistry;
import java.nio.file.Path;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.boot.health.contributor.Health;
import org.springframework.boot.health.contributor.HealthIndicator;
import org.springframework.context.annotation.Bean;
import org.springframework.web.bind.annotation.PostMapping;
import org.springframework.web.bind.annotation.RequestBody;
import org.springframework.web.bind.annotation.RestController;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.observe.MicrometerListener;

@SpringBootApplication
public class App {
    @Bean
    MoeLayer layer(
            @Value("${moe.checkpoint}") Path checkpoint,
            @Value("${moe.backend:auto}") String backend,
            MeterRegistry registry) {
        MoeOptions options = MoeOptions.DEFAULT.withBackend(backend).withListener(new MicrometerListener(registry));
        return MoeLayer.load(checkpoint, 0, options);
    }

    /** For /actuator/health: up while the layer's output for one token is finite. */
    @Bean
    HealthIndicator moe(MoeLayer layer) {
        return () -> {
            float[] output = layer.forward(new float[layer.config().hiddenDim()]);
            return (Float.isFinite(output[0]) ? Health.up() : Health.down())
                    .withDetail("layer", layer.toString())
                    .build();
        };
    }

    @RestController
    record Layers(MoeLayer layer) {
        @PostMapping("/forward")
        float[] forward(@RequestBody float[] hidden) {
            return layer.forward(hidden);
        }
    }

    public static void main(String[] args) {
        SpringApplication.run(App.class, args);
    }
}
