"""LIBERO: tasks, scene, stepper, controller, rendering and privileged state."""
